"""The engine of a process: one thread that owns every model and context, and decodes what all callers ask for together.

thread.py      the thread, how callers hand it work, wait for it and cancel it
model.py       the models that are open, shared by the backends for one file and plan
scheduler.py   which requests are in the next step
sequences.py   what a context holds, and who can begin with it
prompt_cache.py  long prompts on disk, between processes
"""
