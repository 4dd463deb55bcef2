"""Hostile templates end in one `TemplateError`, the caller is never hurt, and the next render works."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tea_models.chat import TemplateError, render_chat
from tea_models.chat.sandbox import SANDBOX, Sandbox

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]

ENDLESS = {
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a range in a filter": "{{ range(99999) | map('string') | map('center', 9999999) | map('length') | sum }}",
    "a power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "a big product": "{% set x = 10 ** 4000000 %}{% for i in range(9999) %}{% set y = x * x %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a recursive loop": "{% for a in [[[1]]] recursive %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a sort of a sort": "{% for i in range(99999) %}{% set s = range(99999) | sort(reverse=true) %}{% endfor %}",
    "a namespace that counts": "{% set ns = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(9999) %}{% set ns.n = ns.n + 1 %}{% endfor %}{% endfor %}",
}

HUGE = {
    "a multiplied text": "{{ 'a' * 10 ** 11 }}",
    "a multiplied list": "{{ ([0] * 10 ** 10) | length }}",
    "a doubling text": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "a doubling list": "{% set ns = namespace(x=[0, 0]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "a join": "{{ (['a' * 1000000] * 100000) | join }}",
    "a padded number": "{{ '%0999999999d' % 7 }}",
    "a padded text": "{{ '{:>999999999}'.format('a') }}",
    "a centred text": "{{ 'a' | center(999999999) }}",
    "an indented text": "{{ 'a\na' | indent(2000000000, first=true) }}",
    "a replaced text": "{{ ('a' * 10000000) | replace('a', 'a' * 1000) }}",
    "lorem ipsum": "{{ lipsum(n=1000, min=100000, max=100001) }}",
    "a block of spaces in JSON": "{{ [[1]] | tojson(indent=1000000000) }}",
    "a big exponent": "{{ (2 ** (10 ** 10)) | string | length }}",
    "a list of ranges": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + [range(99999) | list] %}{% endfor %}",
    "many batches": "{{ range(99999) | batch(99999999, 'x') | list | length }}",
    "a macro's argument": "{% macro m(x) %}{{ m(x + x) }}{% endmacro %}{{ m('aaaaaaaaaaaaaaaa') }}",
    "much output": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "a block": "{% set x %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}{{ x }}",
}

WALKS = {
    "the class of a text": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "an item": "{{ ''['__class__'] }}",
    "the attr filter": "{{ '' | attr('__class__') }}",
    "the attr filter with a built name": "{{ '' | attr('__cla' ~ 'ss__') }}",
    "map": "{{ [''] | map(attribute='__class__') | list }}",
    "the format string of str": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "format through map": "{{ ['{0.__class__}'] | map('format', 1) | list }}",
    "format through attr": "{{ ('{0.__class__.__base__}' | attr('format'))(1) }}",
    "format as a value": "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "the globals of a function": "{{ raise_exception.__globals__ }}",
    "the globals of strftime_now": "{{ strftime_now.__func__.__globals__ }}",
    "the self of strftime_now": "{{ strftime_now.__self__.__dict__ }}",
    "the globals of a cycler": "{{ cycler.__init__.__globals__.os }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('true') }}",
    "the frame of a generator": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "the code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "the context": "{{ self._TemplateReference__context }}",
    "the environment": "{{ self.__init__.__globals__ }}",
    "the class of undefined": "{{ missing.__class__.__init__ }}",
    "the loop": "{% for i in [1] %}{{ loop._iterable.__class__ }}{% endfor %}",
    "a namespace": "{% set ns = namespace(__class__=1) %}{{ ns.__class__ }}",
    "a namespace by set": "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "the dict type": "{{ dict.__class__ }}",
    "mro": "{{ dict.mro() }}",
    "a caller": "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "sum with a start": "{{ [''] | sum(attribute='__class__', start='') }}",
    "groupby": "{{ [''] | groupby('__class__') }}",
    "sort by attribute": "{{ ['', 'a'] | sort(attribute='__class__.__name__') }}",
    "selectattr": "{{ [''] | selectattr('__class__') | list }}",
    "xmlattr": "{{ {'a': ''.__class__} | xmlattr }}",
    "imports": "{% import 'os' as os %}{{ os }}",
    "an include of a file": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
}

MUTATIONS = {
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'content': 'x'}) }}",
    "pop": "{{ messages.pop() }}",
    "clear": "{{ messages[0].clear() }}",
    "append by attr": "{{ (messages | attr('append'))(1) }}",
}

PARSING = {
    "parentheses": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
    "lists": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "ifs": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "loops": "{% for a in b %}" * 5_000 + "{% endfor %}" * 5_000,
    "blocks": "{% filter upper %}" * 5_000 + "{% endfilter %}" * 5_000,
    "minus signs": "{{ " + "-" * 20_000 + "1 }}",
    "nots": "{{ " + "not " * 20_000 + "1 }}",
    "a long sum": "{{ 1" + "+1" * 50_000 + " }}",
    "a long chain": "{{ a" + ".b" * 50_000 + " }}",
    "a long text": "{{ a" + "~'b'" * 50_000 + " }}",
    "conditions": "{{ " + "1 if 1 else (" * 5_000 + "1" + ")" * 5_000 + " }}",
    "many filters": "{{ 'a'" + "|upper" * 50_000 + " }}",
    "open": "{{ messages[",
    "an open block": "{% for",
    "an open comment": "{#",
    "an unknown tag": "{% spam %}",
    "an unknown filter": "{{ 1 | spam }}",
    "an unclosed loop": "{% for a in b %}",
    "a bad operator": "{{ 1 +* 2 }}",
    "a NUL": "{{ \x00 }}",
    "a surrogate": "{{ \ud800 }}",
    "a big literal": "{{ " + "9" * 100_000 + " }}",
    "a bad number": "{{ 1e999999999999 ** 'a' }}",
}


def refused(template: str, *, timeout: float = 5.0, **options: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        render_chat(template, HELLO, timeout=timeout, **options)
    assert render_chat(PLAIN, HELLO) == "hello"
    return caught.value.message


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(name: str) -> None:
    assert refused(ENDLESS[name], timeout=0.3).startswith("chat template")


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_builds_gigabytes_is_stopped(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(HUGE[name], timeout=1.5).startswith("chat template")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150_000  # KiB: the caller's own memory


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_out_of_the_sandbox_finds_nothing(name: str) -> None:
    try:
        text = render_chat(WALKS[name], HELLO)
    except TemplateError:
        text = ""
    for leak in ("<class", "<function", "<module", "<built-in", "<code", "root:", "0x", "{'__", "mro"):
        assert leak not in text
    assert render_chat(PLAIN, HELLO) == "hello"


@pytest.mark.parametrize(
    "name", ["the class of a text", "an item", "the attr filter", "the globals of strftime_now", "lipsum"]
)
def test_reaching_for_internals_is_an_error_at_the_first_step(name: str) -> None:
    assert "leave the sandbox" in refused(WALKS[name])


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_a_template_is_given_can_not_be_changed_by_it(name: str) -> None:
    assert "leave the sandbox" in refused(MUTATIONS[name])


@pytest.mark.parametrize("name", PARSING)
def test_a_template_that_can_not_be_parsed_is_one_error(name: str) -> None:
    try:
        render_chat(PARSING[name], HELLO)
    except TemplateError as error:
        assert len(error.message) < 3000  # noqa: PT017
    assert render_chat(PLAIN, HELLO) == "hello"


def test_time_is_measured_and_named() -> None:
    assert refused(ENDLESS["nested ranges"], timeout=0.2) == "chat template: not done after 0.2 s"


def test_memory_is_measured_and_named() -> None:
    assert refused(HUGE["a multiplied text"]).endswith("needs more memory than a template may use")


def test_a_loop_that_multiplies_messages_is_stopped_by_the_output_limit() -> None:
    message = refused(HUGE["much output"])
    assert "renders more than 8,388,608 characters" in message


def worker_status(field: str) -> str:
    render_chat(PLAIN, HELLO)
    assert SANDBOX._process is not None
    return Path(f"/proc/{SANDBOX._process.pid}/{field}").read_text()


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_the_worker_can_open_nothing_write_nothing_and_inherits_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    SANDBOX.close()
    limits = worker_status("limits")
    for name, value in (
        ("Max open files", "3"),
        ("Max file size", "0"),
        ("Max core file size", "0"),
        ("Max processes", "0"),
    ):
        line = next(line for line in limits.splitlines() if line.startswith(name))
        assert line[len(name) :].split()[:2] == [value, value]
    assert "hf_secret" not in worker_status("environ")
    assert "\0HOME=" not in "\0" + worker_status("environ")


def test_a_worker_killed_between_two_renders_is_replaced() -> None:
    render_chat(PLAIN, HELLO)
    assert SANDBOX._process is not None
    os.kill(SANDBOX._process.pid, signal.SIGKILL)
    assert render_chat(PLAIN, HELLO) == "hello"


def test_threads_take_turns() -> None:
    def one(number: int) -> bool:
        text = f"text {number}"
        return render_chat(PLAIN, [{"role": "user", "content": text}]) == text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(400)))


def test_a_thread_with_a_hostile_template_does_not_spoil_the_others() -> None:
    errors = []

    def hostile() -> None:
        try:
            render_chat(ENDLESS["nested ranges"], [], timeout=0.2)
        except TemplateError as error:
            errors.append(error)

    threads = [threading.Thread(target=hostile) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert all(render_chat(PLAIN, HELLO) == "hello" for _ in range(20))
    for thread in threads:
        thread.join()
    assert len(errors) == 3


def test_a_forked_child_gets_a_worker_of_its_own() -> None:
    render_chat(PLAIN, HELLO)
    assert SANDBOX._process is not None
    parents = SANDBOX._process.pid
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = render_chat(PLAIN, HELLO)
            own = SANDBOX._process is not None and SANDBOX._process.pid != parents
            os.write(write, f"{text} {own}".encode())
            SANDBOX.close()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"hello True"
    os.close(read)
    assert render_chat(PLAIN, HELLO) == "hello"
    assert SANDBOX._process.pid == parents


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["exit", "kill", "kill while rendering"])
def test_the_worker_does_not_outlive_its_parent(how: str) -> None:
    script = (
        "import os, sys, threading, time\n"
        "from tea_models.chat import render_chat\n"
        "from tea_models.chat.sandbox import SANDBOX\n"
        "render_chat('', [])\n"
        "print(SANDBOX._process.pid, flush=True)\n"
        "how = sys.argv[1]\n"
        "if how == 'kill while rendering':\n"
        f"    threading.Thread(target=lambda: render_chat({ENDLESS['nested ranges']!r}, [], timeout=0.5), daemon=True).start()\n"
        "    time.sleep(0.2)\n"
        "if how != 'exit':\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=False, timeout=600)
    process = int(done.stdout)
    deadline = time.monotonic() + 120
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(process)


def test_an_interrupt_in_the_middle_of_a_render_leaves_a_working_sandbox() -> None:
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            render_chat(ENDLESS["nested ranges"], [], timeout=300)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert render_chat(PLAIN, HELLO) == "hello"


def test_no_descriptor_is_lost_when_workers_are_replaced() -> None:
    render_chat(PLAIN, HELLO)
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        SANDBOX.close()
        render_chat(PLAIN, HELLO)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_sandbox_can_be_closed_twice() -> None:
    sandbox = Sandbox()
    sandbox.close()
    sandbox.close()


def test_a_python_without_an_executable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    SANDBOX.close()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(TemplateError, match="does not know its executable"):
        render_chat(PLAIN, HELLO)


def test_a_worker_that_can_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    SANDBOX.close()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(TemplateError, match="could not be started"):
        render_chat(PLAIN, HELLO)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TemplateError, match=r"could not be started: it ended with status 1"):
        render_chat(PLAIN, HELLO)


def test_a_process_with_closed_standard_descriptors_can_render(tmp_path: Path) -> None:
    script = (
        "import os\n"
        "for descriptor in (0, 1, 2):\n"
        "    os.close(descriptor)\n"
        "from tea_models.chat import render_chat\n"
        f"text = render_chat({PLAIN!r}, {HELLO!r})\n"
        f"open({str(tmp_path / 'answer')!r}, 'w').write(text)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / "answer").read_text() == "hello"


def test_a_relocated_python_can_render() -> None:
    code = f"from tea_models.chat import render_chat; print(render_chat({PLAIN!r}, {HELLO!r}))"
    environ = os.environ | {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"


def test_modules_in_the_working_directory_are_not_imported_by_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    (tmp_path / "jinja2.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    SANDBOX.close()
    assert render_chat(PLAIN, HELLO) == "hello"


def test_descriptors_that_the_parent_left_inheritable_are_closed_in_the_worker(tmp_path: Path) -> None:
    SANDBOX.close()
    (tmp_path / "secret").touch()
    descriptor = os.open(tmp_path / "secret", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        render_chat(PLAIN, HELLO)
        assert SANDBOX._process is not None
        links = Path(f"/proc/{SANDBOX._process.pid}/fd")
        if links.exists():
            assert not any("secret" in str(link.readlink()) for link in links.iterdir())
    finally:
        os.close(descriptor)


def test_nothing_heavy_is_imported_by_the_caller() -> None:
    code = (
        "import sys, tea_models.chat as chat; chat.render_chat('', []);"
        "print([m for m in ('jinja2', 'pydantic', 'yaml', 'datetime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
