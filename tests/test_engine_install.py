"""`engine install` in an environment of its own: what it installs, and what it leaves alone when it can't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tea_models.engine.install import check_environment
from tea_models.errors import EngineError
from tea_models.registry.engines import Catalog
from tests.conftest import _HOME, _SHARED_STORE
from tests.engine_parts import binding_of, catalog_of, library_wheel, prebuilt_of, source_distribution

ROOT = Path(__file__).parents[1]
HERE = ["linux", "x86_64", "2.36"]
PROGRAM = """
import json, sys
from pathlib import Path
from tea_models.caller import Caller
from tea_models.registry.engines import Catalog, Host
from tea_models.yamlfile import read_yaml, validate
from tea_models.engine.install import Wanted, install
from tea_models.errors import TeaModelsError
catalog, wanted, host = sys.argv[1:]
here = Host(*json.loads(host))
Host.here = staticmethod(lambda: here)
try:
    done = install(Wanted(**json.loads(wanted)), Caller.of(), catalog=validate(Catalog, read_yaml(Path(catalog))))
except TeaModelsError as error:
    print(json.dumps({"type": error.type, "message": error.message, "hint": error.hint, "exit": error.exit_code}))
else:
    print(json.dumps({"status": done.status, "kind": done.engine.kind}))
"""


class Environment:
    """A virtual environment without an engine, in which this project and its dependencies can be imported."""

    def __init__(self, folder: Path, dependencies: Path, **environ: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "dependencies.pth").write_text(f"{ROOT}\n{dependencies}\n")
        self.environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environ
        self.before = self.contents()

    def contents(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.site)) for path in self.site.rglob("*") if "__pycache__" not in path.parts
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([self.python, *arguments], env=self.environ, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, errors = process.communicate(timeout=600)
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "tea_models.cli", "engine", *arguments)

    def install(self, catalog: Catalog, folder: Path, host: list[Any] = HERE, **wanted: Any) -> dict[str, Any]:
        file = folder / "engines.json"
        file.write_text(catalog.model_dump_json(by_alias=True))
        done = self.run("-c", PROGRAM, str(file), json.dumps(wanted), json.dumps(host))
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is installed here, without the engine and without this project."""
    folder = tmp_path_factory.mktemp("dependencies")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("llama_cpp") and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def bare(tmp_path: Path, dependencies: Path) -> Environment:
    return Environment(tmp_path / "venv", dependencies)


@pytest.fixture
def links(tmp_path: Path, bare: Environment) -> Path:
    """A folder in the place of the package index."""
    folder = tmp_path / "links"
    folder.mkdir()
    bare.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
    return folder


@pytest.fixture
def catalog(links: Path) -> Catalog:
    """One engine, whose library is none."""
    return catalog_of(binding_of(source_distribution(links)), prebuilt_of(library_wheel(links)))


def test_a_library_that_does_not_load_is_refused_and_nothing_is_installed(
    bare: Environment, catalog: Catalog, tmp_path: Path
) -> None:
    told = bare.install(catalog, tmp_path, how="prebuilt")
    assert told["exit"] == 1
    assert "refused" in told["message"]
    assert "--compile" in told["hint"]
    assert bare.contents() == bare.before


def test_wrong_bytes_end_with_3_and_nothing_is_installed(bare: Environment, catalog: Catalog, tmp_path: Path) -> None:
    engine = catalog.engines[0].model_copy(update={"sha256": "0" * 64})
    told = bare.install(catalog_of(catalog.binding, engine), tmp_path, how="prebuilt")
    assert (told["type"], told["exit"]) == ("ChecksumMismatch", 3)
    assert bare.contents() == bare.before


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (["linux", "x86_64", None], "linux on x86_64, no glibc"),
        (["linux", "x86_64", "2.12"], "glibc 2.12"),
        (["linux", "riscv64", "2.36"], "linux on riscv64"),
    ],
)
def test_where_nothing_fits_that_is_said_with_what_would_help(
    host: list[Any], words: str, bare: Environment, catalog: Catalog, tmp_path: Path
) -> None:
    told = bare.install(catalog, tmp_path, host, how="prebuilt")
    assert told["exit"] == 4
    assert words in told["message"]
    assert "--compile" in told["hint"]


def test_an_engine_by_name_that_is_for_another_machine_is_refused_with_the_reason(
    bare: Environment, catalog: Catalog, tmp_path: Path
) -> None:
    told = bare.install(catalog, tmp_path, ["linux", "x86_64", None], name="built")
    assert told["exit"] == 4
    assert "it needs glibc 2.17" in told["message"]


def test_nothing_on_the_index_ends_with_4(bare: Environment, catalog: Catalog, links: Path, tmp_path: Path) -> None:
    for path in links.iterdir():
        path.unlink()
    told = bare.install(catalog, tmp_path, how="prebuilt")
    assert told["exit"] == 4
    assert "No matching distribution" in told["message"]


def test_offline_with_an_empty_store_ends_with_4(bare: Environment) -> None:
    done = bare.cli("install", "--json", "--offline", "--no-self-test")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["type"] == "Offline"


def test_to_compile_without_a_compiler_is_refused(bare: Environment, tmp_path: Path) -> None:
    bare.environ["PATH"] = str(tmp_path)
    bare.environ.pop("CXX", None)
    done = bare.cli("install", "--compile")
    assert done.returncode == 4
    assert "there is no C++ compiler" in done.stderr


@pytest.mark.parametrize("how", ["auto", "prebuilt", "compile"])
def test_what_somebody_else_has_installed_is_not_replaced(
    how: str, bare: Environment, catalog: Catalog, tmp_path: Path
) -> None:
    (bare.site / "llama_cpp").mkdir()
    (bare.site / "llama_cpp" / "__init__.py").write_text("mine = True\n")
    before = bare.contents()
    told = bare.install(catalog, tmp_path, how=how)
    assert told["exit"] == 1
    assert told["hint"] == "--force replaces it"
    assert bare.contents() == before


def test_a_library_named_in_the_environment_is_foreign(bare: Environment, tmp_path: Path) -> None:
    (bare.site / "llama_cpp").mkdir()
    (bare.site / "llama_cpp" / "__init__.py").write_text("")
    bare.environ["LLAMA_CPP_LIB_PATH"] = str(tmp_path)
    answer = json.loads(bare.cli("--json").stdout)
    assert answer["kind"] == "foreign"
    assert answer["source"] == f"LLAMA_CPP_LIB_PATH={tmp_path}"


def test_without_an_engine_the_keys_are_there_and_the_next_step_is_said(bare: Environment) -> None:
    answer = json.loads(bare.cli("--json").stdout)
    assert set(answer) >= {"installed", "version", "llama_cpp", "kind", "library", "sha256", "source", "features"}
    assert answer["installed"] is False
    assert "tea-models engine install" in bare.cli().stdout


def test_a_python_of_the_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    with pytest.raises(EngineError, match="belongs to the system") as caught:
        check_environment({})
    assert "python3 -m venv" in caught.value.hint
    check_environment({"PIP_BREAK_SYSTEM_PACKAGES": "1"})


def test_an_environment_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path / "not there"))
    with pytest.raises(EngineError, match="can't be written"):
        check_environment({})


@pytest.mark.real
class TestReal:
    """With the real archives, which are fetched once a machine; the wheel is kept in the store of who runs the tests."""

    @pytest.fixture
    def bare(self, tmp_path: Path, dependencies: Path) -> Environment:
        environ = {"HOME": _HOME, "TEA_MODELS_DIR": str(_SHARED_STORE)}
        return Environment(tmp_path / "venv", dependencies, **environ)

    def test_it_is_an_ordinary_distribution_that_passes_the_gate(self, bare: Environment) -> None:
        done = bare.cli("install", "--prebuilt", "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert (answer["kind"], answer["status"], answer["self_test"]) == ("prebuilt", "installed", "passed")
        assert Path(answer["library"]).is_relative_to(bare.site)
        assert answer["seconds"] > 0
        again = json.loads(bare.cli("install", "--json").stdout)
        assert again["status"] == "present"
        assert again["sha256"] == answer["sha256"]
        used = bare.run("-c", "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())")
        assert "CPU" in used.stdout
        assert used.stderr == ""
        assert bare.run("-m", "pip", "show", "llama-cpp-python").returncode == 0
        assert "llama" not in bare.run("-m", "pip", "check").stdout
        assert bare.run("-m", "pip", "uninstall", "--yes", "llama-cpp-python").returncode == 0
        assert bare.contents() == bare.before

    def test_a_function_that_the_library_lacks_raises_when_it_is_called(self, bare: Environment) -> None:
        bare.cli("install", "--prebuilt", "--no-self-test")
        lacks = json.loads(bare.cli("--json").stdout)["missing_functions"]
        assert lacks
        used = bare.run("-c", f"import llama_cpp; llama_cpp.{lacks[-1]}(None)")
        assert f"NotImplementedError: {lacks[-1]}" in used.stderr

    def test_a_compiled_engine_is_wanted_and_a_prebuilt_one_there(self, bare: Environment) -> None:
        bare.cli("install", "--prebuilt", "--no-self-test")
        bare.environ["PATH"] = "/nowhere"
        bare.environ.pop("CXX", None)
        done = bare.cli("install", "--compile")
        assert done.returncode == 4
        assert json.loads(bare.cli("--json").stdout)["kind"] == "prebuilt"

    def test_two_at_once_both_succeed(self, bare: Environment) -> None:
        arguments = ("-m", "tea_models.cli", "engine", "install", "--prebuilt", "--no-self-test", "--json")
        both = [bare.start(*arguments) for _ in range(2)]
        answers = [json.loads(process.communicate(timeout=600)[0]) for process in both]
        assert sorted(answer["status"] for answer in answers) == ["installed", "present"]
        assert json.loads(bare.cli("--json").stdout)["problems"] == []

    def test_killed_half_way_it_leaves_nothing_and_can_be_run_again(self, bare: Environment) -> None:
        process = bare.start("-m", "tea_models.cli", "engine", "install", "--prebuilt", "--no-self-test")
        assert process.stderr is not None
        line = process.stderr.readline()
        while line and "checking" not in line:
            line = process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert bare.contents() == bare.before
        assert bare.cli("install", "--prebuilt", "--no-self-test").returncode == 0
