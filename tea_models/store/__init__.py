"""The store: one folder of model files under their upstream names, and what is known about them in a hidden one beside.

    ~/.cache/tea/models/
      SmolLM2-135M-Instruct.Q4_1.gguf          always verified bytes
      ggml-org/gemma-3-1b-it-GGUF/…gguf        another file of a name that is taken
      .tea/records/<same path>.json            size, sha256, source, and the stamp it was verified at
      .tea/profiles/<same path>.json           the resolved profile
      .tea/partial/<key>.<host>.part           bytes on their way
      .tea/locks/<key>.lock                    one process at a time for a file
      .tea/projects/<key>.json                 a lock that `sync` was given, and the hashes it names
      .tea/broken/                             what was found broken under a final name, moved aside

A file gets its final name by a hard link of the checked partial, which fails if the name is taken: nothing is ever
overwritten, also when several processes work without locks.
"""

from tea_models.store.names import check_name, key_of
from tea_models.store.record import HIDDEN, Installed, Record, stamp_of
from tea_models.store.store import NameTakenError, Store

__all__ = ["HIDDEN", "Installed", "NameTakenError", "Record", "Store", "check_name", "key_of", "stamp_of"]
