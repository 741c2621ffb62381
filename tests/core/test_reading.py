"""Weight files of other projects: what is in them comes out, and nothing in them ever runs."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251 - to write files, good and hostile ones; never to read any
import random
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.weights.reading import TensorInfo, open_tensors

SPRUNG: list[str] = []


def spring(*arguments: object) -> None:
    """The name of this function is not refused, so that a file may ask for it to be called."""
    SPRUNG.append("called")


class Trap:
    """Every way in which a pickle runs code of a class that it names."""

    def __new__(cls, *arguments: object, **options: object) -> Trap:
        SPRUNG.append("__new__")
        return super().__new__(cls)

    def __init__(self, *arguments: object, **options: object) -> None:
        SPRUNG.append("__init__")

    def __setstate__(self, state: object) -> None:
        SPRUNG.append("__setstate__")

    def append(self, item: object) -> None:
        SPRUNG.append("append")

    def extend(self, items: object) -> None:
        SPRUNG.append("extend")

    def add(self, item: object) -> None:
        SPRUNG.append("add")

    def __setitem__(self, key: object, value: object) -> None:
        SPRUNG.append("__setitem__")


@pytest.fixture(autouse=True)
def nothing_springs() -> Any:
    SPRUNG.clear()
    yield
    assert SPRUNG == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.bin"


def read_all(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        tensors = {name: file.read(name) for name in file.infos}
        assert file.infos == {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}
        assert all(tensor.is_contiguous() for tensor in tensors.values())
    return tensors


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.startswith(path.name) and "\n" not in message
    return message


# What is in a file comes out


def nested() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(6, 8, generator=generator)
    weights = OrderedDict(
        matrix=base,
        transposed=base.t(),
        window=base[1:4, 2:7:2],
        repeated=base[0].expand(5, 8),
        half=torch.randn(3, 2, generator=generator).half(),
        brain=torch.randn(7, generator=generator).bfloat16(),
        double=torch.randn(2, generator=generator).double(),
        integers=torch.arange(-3, 4),
        small=torch.arange(5, dtype=torch.int32),
        bytes=torch.arange(250, 256, dtype=torch.uint8),
        booleans=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2, generator=generator)),
    )
    return {"state_dict": weights, "list": [base[2], {"deep": base[3]}], "epoch": 3, "options": {"lr": 1e-4}}


def flat(values: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(values, Tensor):
        return {prefix: values}
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    found = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_checkpoints_of_pytorch(path: Path, new: bool, protocol: int) -> None:
    torch.save(nested(), path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    expected = flat(torch.load(path, weights_only=True) if protocol == 2 else nested())
    found = read_all(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor.detach()), name
    with open_tensors(path) as file:
        assert file.kind == "torch" and file.ignored == ["epoch", "options"] and file.metadata == {}


def test_types_without_a_storage_class_of_their_own(path: Path) -> None:
    values = {
        "wide": torch.arange(3).to(torch.uint16),
        "tiny": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn),
    }
    torch.save(values, path)
    found = read_all(path)
    assert found["wide"].dtype == torch.uint16 and found["wide"].tolist() == [0, 1, 2]
    assert found["tiny"].dtype == torch.float8_e4m3fn and found["tiny"].float().tolist() == [0.5, -2.0]


def test_state_dict_of_a_module(path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), path)
    found = read_all(path)
    assert list(found) == list(module.state_dict())
    module.load_state_dict(found)
    with open_tensors(path) as file:
        assert file.ignored == []


def test_compressed_archive(path: Path, tmp_path: Path) -> None:
    torch.save(nested(), tmp_path / "stored")
    with zipfile.ZipFile(tmp_path / "stored") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    found = read_all(path)
    for name, tensor in flat(nested()).items():
        assert torch.equal(found[name], tensor.detach()), name


def test_safetensors(path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.tensor(True)}
    save_file(tensors, path, {"author": "someone"})
    with open_tensors(path) as file:
        assert file.kind == "safetensors" and file.metadata == {"author": "someone"}
    found = read_all(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_read_tensors_are_the_callers_own(path: Path) -> None:
    for save in (
        lambda: save_file({"a": torch.ones(3)}, path),
        lambda: torch.save({"a": torch.ones(3)}, path),
    ):
        save()
        with open_tensors(path) as file:
            file.read("a").zero_()
            assert file.read("a").tolist() == [1, 1, 1]


def test_names_and_closing(path: Path) -> None:
    torch.save({"a": torch.ones(3)}, path)
    with open_tensors(path) as file, pytest.raises(InputError, match="no tensor b"):
        file.read("b")
    with pytest.raises(RuntimeError, match="closed"):
        file.read("a")


def test_bare_tensors(path: Path) -> None:
    torch.save(torch.ones(2), path)
    assert list(read_all(path)) == ["tensor"]
    torch.save([torch.ones(2), torch.zeros(2)], path)
    assert list(read_all(path)) == ["0", "1"]


# FLAME's pickles


class Ch:
    """chumpy.ch.Ch, as far as pickling goes."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self._dirty_vars: set[str] = set()


class csc_matrix:
    """scipy.sparse.csc.csc_matrix of old, as far as pickling goes."""

    def __init__(self, dense: np.ndarray) -> None:
        rows, columns = np.nonzero(dense.T)[::-1]
        self.data, self.indices = dense[rows, columns], rows.astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=dense.shape[1]))])
        self._shape = dense.shape


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes alike as Python 2 does."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        if not self.bin:
            escaped = "".join(chr(b) if 32 <= b < 127 and b not in (39, 92) else f"\\x{b:02x}" for b in raw)
            self.write(f"S'{escaped}'\n".encode())
        elif len(raw) < 256:
            self.write(b"U" + bytes([len(raw)]) + raw)
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


@pytest.fixture
def flame(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A head in FLAME's layout, smaller; its classes have the names of chumpy's and SciPy's."""
    for parent in ("chumpy", "scipy", "scipy.sparse"):
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    for kind, module in ((Ch, "chumpy.ch"), (csc_matrix, "scipy.sparse.csc")):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", module)
    random = np.random.default_rng(5)
    regressor = random.random((5, 40)) * (random.random((5, 40)) < 0.2)
    return {
        "v_template": random.normal(size=(40, 3)),
        "shapedirs": Ch(random.normal(size=(40, 3, 12))),
        "posedirs": np.asfortranarray(random.normal(size=(40, 3, 36))),
        "f": random.integers(0, 40, (70, 3)).astype(np.uint32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32),
        "weights": random.random((40, 5)).astype(np.float32),
        "J_regressor": csc_matrix(regressor),
        "dense": regressor,
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


@pytest.mark.parametrize("pickler", [pickle.Pickler, Python2Pickler], ids=["python3", "python2"])
@pytest.mark.parametrize("protocol", range(6))
def test_flame(
    path: Path, flame: dict[str, Any], pickler: type, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pickler is Python2Pickler and protocol > 2:
        pytest.skip("Python 2 knows protocols up to 2")
    with path.open("wb") as stream:
        pickler(stream, protocol).dump(flame)
    for module in ("chumpy.ch", "scipy.sparse.csc"):
        monkeypatch.delitem(sys.modules, module)
    found = read_all(path)
    with open_tensors(path) as file:
        assert file.kind == "pickle" and file.ignored == ["bs_style", "bs_type"]
    assert found["f"].dtype == torch.int64 and found["f"].tolist() == flame["f"].tolist()
    assert found["kintree_table"][0, 0] == 2**32 - 1
    for name in ("v_template", "posedirs", "weights"):
        assert np.array_equal(found[name].numpy(), flame[name]), name
    assert np.array_equal(found["shapedirs"].numpy(), flame["shapedirs"].x)
    assert np.array_equal(found["J_regressor"].numpy(), flame["dense"])
    assert "chumpy.ch" not in sys.modules and "scipy.sparse.csc" not in sys.modules


@pytest.mark.parametrize("layout", ["csc", "csr", "coo"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_matrices_of_scipy(path: Path, layout: str, kind: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.random.default_rng(1).random((5, 30)) * (np.random.default_rng(2).random((5, 30)) < 0.3)
    path.write_bytes(pickle.dumps({"m": getattr(sparse, f"{layout}_{kind}")(dense)}, 2))
    assert np.array_equal(read_all(path)["m"].numpy(), dense)


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([9])},
        {"indices": np.array([-1])},
        {"indices": np.array([0.5])},
        {"indptr": np.array([0, 0, 2])},
        {"indptr": np.array([1, 1, 2])},
        {"indptr": np.array([0, 2, 1])},
        {"indptr": np.array([0, 2**63 - 1, 1])},
        {"indptr": np.array(0)},
        {"indptr": np.array([0, 1])},
        {"data": np.ones(7)},
        {"_shape": (2**31, 2**31)},
        {"_shape": (2**40, 2)},
        {"_shape": (-1, 2)},
        {"_shape": ("1", 2)},
        {"indices": "none"},
    ],
)
def test_sparse_matrices_that_do_not_fit(path: Path, flame: dict[str, Any], change: dict[str, Any]) -> None:
    matrix = csc_matrix(np.array([[0.0, 3.0], [0.0, 0.0]]))
    path.write_bytes(pickle.dumps({"m": matrix, "a": np.ones(1)}, 2))
    assert read_all(path)["m"].tolist() == [[0, 3], [0, 0]]
    vars(matrix).update(change)
    path.write_bytes(pickle.dumps({"m": matrix, "a": np.ones(1)}, 2))
    if "indices" in change and isinstance(change["indices"], str):
        assert list(read_all(path)) == ["a"]
    else:
        assert " m" in refusal(path)


# NumPy's files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(path: Path, save: Callable[..., None]) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "mean": random.random((4, 4, 3)),
        "fortran": np.asfortranarray(random.random((3, 5)).astype(np.float32)),
        "big_endian": random.random(6).astype(">f8"),
        "faces": np.arange(6, dtype=np.uint32),
        "flags": np.array([[True, False]]),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 3)),
    }
    with path.open("wb") as stream:
        save(stream, text=np.array("a"), **arrays)
    found = read_all(path)
    with open_tensors(path) as file:
        assert file.kind == "numpy" and file.ignored == ["text"]
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name].numpy(), array) and found[name].shape == array.shape, name


def test_single_arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.arange(5.0))
    assert read_all(path)["array"].tolist() == [0, 1, 2, 3, 4]
    old = path.read_bytes().replace(b"(5,), ", b"(5L,),")
    path.write_bytes(old)
    assert read_all(path)["array"].tolist() == [0, 1, 2, 3, 4]


def test_dict_in_an_array(path: Path) -> None:
    """DECA's landmark_embedding.npy"""
    embedding = {"faces": np.arange(51), "coordinates": np.ones((79, 17, 3)), "name": "static"}
    with path.open("wb") as stream:
        np.save(stream, np.array(embedding, dtype=object), allow_pickle=True)
    found = read_all(path)
    assert found["coordinates"].shape == (79, 17, 3) and found["faces"].tolist() == list(range(51))
    header_end = path.read_bytes().index(b"\n") + 1
    path.write_bytes(path.read_bytes()[:header_end] + b"cos\nsystem\n(S'true'\ntR.")
    assert "tries to run code (os.system)" in refusal(path)


# What is no weight file, and what is broken


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "only a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html><head>Sign in</head>", "saved web page"),
        (b"<html>404</html>", "saved web page"),
        (b'{"error": "not found"}', "text file"),
        (b"Access denied\n", "text file"),
        (b"\x1f\x8b\x08\x00" + bytes(30), "gzip archive: expected weights, unpack it first"),
        (b"a" * 100 + bytes(157) + b"ustar\x0000" + bytes(300), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(30), "unknown format"),
        (bytes(300), "unknown format"),
        (b"PK\x05\x06" + bytes(18), "archive of other things: expected a weight file, found nothing"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}", "truncated"),
    ],
)
def test_foreign_files(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    assert message in refusal(path)


def test_missing_files_and_folders(path: Path, tmp_path: Path) -> None:
    for absent in (path, tmp_path):
        with pytest.raises(InputError, match="There is no file"):
            open_tensors(absent)


def test_archive_of_other_things(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("FLAME2020/generic_model.pkl", b"")
    assert "found FLAME2020/generic_model.pkl in it; unpack it first" in refusal(path)


def test_programs_instead_of_weights(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "TorchScript program" in refusal(path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "object of class 'torch.nn.modules.linear.Linear': expected weights by name" in refusal(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_not_a_number(path: Path, bad: float, dtype: torch.dtype) -> None:
    tensors = {"fine": torch.ones(3), "conv.weight": torch.tensor([1.0, bad, 0.0]).to(dtype)}
    for save in (torch.save, save_file):
        save(tensors, path)
        with open_tensors(path) as file:
            assert file.read("fine").tolist() == [1, 1, 1]
            with pytest.raises(InputError, match=r"found NaN or infinity in conv\.weight"):
                file.read("conv.weight")


def small_file(kind: str) -> bytes:
    stream = io.BytesIO()
    arrays = {"a": np.arange(400.0), "b": np.arange(12, dtype=np.int32).reshape(3, 4)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if kind == "pickle":
        pickle.dump(arrays, stream, 2)
    elif kind == "text pickle":
        pickle.dump(arrays, stream, 0)
    elif kind == "npy":
        np.save(stream, arrays["a"])
    elif kind == "npz":
        np.savez_compressed(stream, **arrays)
    elif kind == "safetensors":
        from safetensors.torch import save

        return save(tensors)
    else:
        torch.save({"state_dict": tensors, "epoch": 1}, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


KINDS = ["zip", "legacy", "pickle", "text pickle", "npy", "npz", "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_everywhere(path: Path, kind: str) -> None:
    whole = small_file(kind)
    path.write_bytes(whole)
    assert read_all(path)
    for end in {*range(0, len(whole), max(1, len(whole) // 150)), *range(1, 20), len(whole) - 1}:
        path.write_bytes(whole[:end])
        refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(path: Path, kind: str) -> None:
    """Whatever is in a file, it is read or refused."""
    whole, chance = small_file(kind), random.Random(7)
    for _ in range(400):
        broken = bytearray(whole)
        for _ in range(chance.choice([1, 1, 1, 4])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(broken)
        try:
            read_all(path)
        except InputError as error:
            assert "\n" not in str(error)


# Hostile files


class Hostile:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.call = (module, name, arguments)

    def __reduce__(self) -> Any:
        module, name, arguments = self.call
        function = types.FunctionType((lambda: None).__code__, {})
        function.__module__, function.__name__, function.__qualname__ = module, name, name
        return function, arguments


class HostilePickler(pickle._Pickler):
    """Writes the name of a function without looking whether there is one."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        name = obj.__qualname__
        if self.proto >= 4:
            self.save(obj.__module__)
            self.save(name)
            self.write(b"\x93")
        else:
            self.write(f"c{obj.__module__}\n{name}\n".encode())
        self.memoize(obj)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, types.FunctionType: save_global}


def hostile_pickle(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    HostilePickler(stream, protocol).dump(value)
    return stream.getvalue()


def checkpoint(path: Path, content: bytes, storages: dict[str, bytes] | None = None) -> None:
    """A checkpoint of PyTorch with any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, raw in (storages or {}).items():
            archive.writestr(f"archive/data/{name}", raw)


CODE = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("__builtin__", "execfile"),
    ("importlib", "import_module"),
    ("runpy", "run_path"),
    ("sys", "exit"),
    ("socket", "socket"),
    ("shutil", "rmtree"),
    ("ctypes", "CDLL"),
    ("pickle", "loads"),
    ("webbrowser", "open"),
    ("operator", "attrgetter"),
    ("types", "FunctionType"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.serialization", "os.system"),
    ("torch._utils", "sys.modules"),
    ("numpy.testing._private.utils", "runstring"),
    ("collections", "OrderedDict.__init__.__globals__"),
]


@pytest.mark.parametrize(("module", "name"), CODE)
def test_code_is_refused(path: Path, tmp_path: Path, module: str, name: str) -> None:
    mark = tmp_path / "mark"
    for protocol in (0, 2, 4):
        content = hostile_pickle({"weight": [1], "more": Hostile(module, name, f"touch {mark}")}, protocol)
        for place in (lambda: path.write_bytes(content), lambda: checkpoint(path, content)):  # noqa: B023
            place()
            message = refusal(path)
            assert f"tries to run code ({module}.{name})" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL and REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",  # OBJ
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85}\x92.",  # STACK_GLOBAL and NEWOBJ_EX
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93)R.",  # the name by way of the memo
        b"\x80\x02N0(lp0\n0cos\nsystem\n.",  # only named
    ],
)
def test_every_instruction_that_calls(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "tries to run code (os.system)" in refusal(path)


def test_extension_registry(path: Path) -> None:
    for code in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"):
        path.write_bytes(b"\x80\x02" + code + b")R.")
        assert "extension registry" in refusal(path)


HERE = f"{__name__}\n".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"c" + HERE + b"spring\n)R",
        b"c" + HERE + b"spring\nc" + HERE + b"spring\n)R\x85R",
        b"(i" + HERE + b"spring\n",
        b"c" + HERE + b"Trap\n)\x81",
        b"c" + HERE + b"Trap\n)}\x92",
        b"(c" + HERE + b"Trap\no",
        b"c" + HERE + b"Trap\n)\x81}U\x01xK\x01sb",
        b"c" + HERE + b"Trap\n)\x81K\x01a",
        b"c" + HERE + b"Trap\n)\x81(K\x01K\x02e",
        b"c" + HERE + b"Trap\n)\x81(K\x01\x90",
        b"c" + HERE + b"Trap\n)\x81K\x01K\x02s",
        b"ccopy_reg\n_reconstructor\n(c" + HERE + b"Trap\nc__builtin__\nobject\nNtR",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(c" + HERE + b"spring\nc" + HERE + b"Trap\n)NtR",
        b"cthis\ns\n)R",
        b"(c" + HERE + b"spring\n)RK\x01\x91",
    ],
)
def test_unknown_objects_stay_inert(path: Path, content: bytes) -> None:
    """They neither run nor stand in the way of the weights beside them."""
    array = pickle.dumps(np.arange(3.0), 2)[2:-1]
    path.write_bytes(b"\x80\x02}(U\x05thing" + content + b"U\x06weight" + array + b"u.")
    with open_tensors(path) as file:
        assert file.ignored == ["thing"] and file.read("weight").tolist() == [0, 1, 2]
    assert "this" not in sys.modules


def test_unknown_objects_beside_weights(path: Path) -> None:
    """What PyTorch Lightning and others leave in a checkpoint."""
    lightning = HostilePickler  # any class as a key
    values = {
        "callbacks": {lightning: {"best": np.float64(0.3)}},
        "hyper_parameters": types.SimpleNamespace(a=1, path=Path("x"), sizes={1, 2}, dtype=torch.float16),
        "state_dict": {"weight": torch.ones(2)},
        "random": np.random.default_rng(0),
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
    }
    torch.save(values, path)
    with open_tensors(path) as file:
        assert list(file.infos) == ["state_dict.weight"]
        assert file.ignored == ["callbacks", "hyper_parameters", "random", "device", "size"]


# Sizes that are not true


class Claim:
    """Pickles as a tensor of any sizes on storage "0"."""

    def __init__(self, offset: Any, shape: Any, stride: Any, numel: Any = 4) -> None:
        self.numel, self.arguments = numel, (offset, shape, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (StorageClaim(self.numel), *self.arguments)


class StorageClaim:
    def __init__(self, numel: Any) -> None:
        self.numel = numel


class ClaimPickler(pickle._Pickler):
    def persistent_id(self, obj: Any) -> Any:
        is_claim = isinstance(obj, StorageClaim)
        return ("storage", torch.FloatStorage, "0", "cpu", obj.numel) if is_claim else None


def claim(path: Path, *arguments: Any, storages: dict[str, bytes] | None = None) -> None:
    stream = io.BytesIO()
    ClaimPickler(stream, 2).dump({"unet.weight": Claim(*arguments)})
    checkpoint(
        path, stream.getvalue(), {"0": struct.pack("<4f", 1, 2, 3, 4)} if storages is None else storages
    )


def test_tensors_within_their_storage(path: Path) -> None:
    claim(path, 1, (3,), (1,))
    assert read_all(path)["unet.weight"].tolist() == [2, 3, 4]
    claim(path, 0, (1000, 2), (0, 3))
    assert read_all(path)["unet.weight"].sum() == 5000


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (2**20, 2**20), (0, 0)),  # repeats one element until memory is full
        (0, (2**62, 2**62), (1, 1)),
        (0, (0, 2**70), (1, 1)),
        (0, (1,), (2**70,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (3, (3,), (-1,)),
        (0, (2,), (1, 1)),
        (0, ("2",), (1,)),
        (0, (2.0,), (1,)),
        ("0", (2,), (1,)),
        (None, (2,), (1,)),
        (0, None, (1,)),
        (0, (1,) * 40, (1,) * 40),
        (0, (4,), (1,), 5),
        (0, (4,), (1,), 2**62),
        (0, (4,), (1,), "4"),
    ],
)
def test_tensors_beyond_their_storage(path: Path, arguments: tuple[Any, ...]) -> None:
    claim(path, *arguments)
    assert "damaged" in refusal(path)


def test_storages_that_are_missing(path: Path) -> None:
    claim(path, 0, (4,), (1,), storages={"1": bytes(16)})
    assert "expected the bytes of unet.weight, found none" in refusal(path)
    with path.open("wb") as stream:
        ClaimPickler(stream, 2).dump({"unet.weight": Claim(0, (4,), (1,))})
    assert "refers to data outside itself" in refusal(path)


def test_arrays_beyond_their_bytes(path: Path) -> None:
    for shape in ((2**40,), (-1,), ("1",)):
        content = pickle.dumps({"v_template": np.arange(3.0)}, 2)
        path.write_bytes(content.replace(b"K\x03\x85", pickle.dumps(shape, 2)[2:-1]))
        assert "v_template" in refusal(path)
    with path.open("wb") as stream:
        np.save(stream, np.arange(10.0))
    path.write_bytes(path.read_bytes().replace(b"(10,), }        ", b"(1000000000,), }"))
    assert "numbers in array, found 80 bytes" in refusal(path)


def test_legacy_storage_of_absurd_size(path: Path) -> None:
    whole = small_file("legacy")
    for claimed in (2**40, 2**62, -1):
        path.write_bytes(whole.replace(struct.pack("<q", 400), struct.pack("<q", claimed)))
        assert "truncated" in refusal(path)


def test_safetensors_header(path: Path) -> None:
    def write(header: str) -> None:
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))

    entry = '"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}'
    write("{" + entry + "}")
    assert read_all(path)["a"].tolist() == [0, 0, 0, 0]
    write("{" + entry + ", " + entry + "}")
    refusal(path)
    write("{" + entry.replace("[4]", "[1099511627776]") + "}")
    assert "truncated or damaged" in refusal(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{" + bytes(100))
    assert "header of at most" in refusal(path)


def test_one_name_twice(path: Path) -> None:
    path.write_bytes(b"\x80\x02}(U\x01aK\x01U\x01aK\x02u.")
    assert "a key twice" in refusal(path)
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, path)
    assert "found a.b twice" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "found one twice" in refusal(path)


def test_names_that_no_tensor_has(path: Path) -> None:
    for name in ("a\nb", "\x1b[2J", "x" * 505):
        torch.save({name: torch.ones(1)}, path)
        assert "expected names of tensors" in refusal(path)


# Bombs: small files that would fill the memory or take forever


@contextmanager
def at_most(count: float) -> Iterator[None]:
    """Python allocates at most so many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= count
    finally:
        tracemalloc.stop()


def lists_of_lists(leaf: bytes, levels: int, width: int = 10) -> bytes:
    """Each list holds the one before many times."""
    content = b"\x80\x02" + leaf + b"q\x00"
    for level in range(levels):
        content += (
            b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * (width - 1) + b"eq" + bytes([level + 1])
        )
    return content + b"."


def test_memo_bombs(path: Path) -> None:
    path.write_bytes(lists_of_lists(b"K\x01", 50))
    with open_tensors(path) as file:  # nothing in it: each of its lists is looked at once
        assert file.infos == {} and len(file.ignored) == 10
    leaf = b"cnumpy\ndtype\nU\x02f8\x85R0cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8)
    leaf += b"cnumpy\ndtype\nU\x02f8\x85RK\x01\x85U\x01CtR"
    path.write_bytes(lists_of_lists(leaf, 2))
    assert len(read_all(path)) == 100
    path.write_bytes(lists_of_lists(leaf, 50))
    assert "at most 100000 tensors" in refusal(path)


def test_deep_and_endless_nesting(path: Path) -> None:
    array = pickle.dumps(np.arange(3.0), 2)[2:-1]
    path.write_bytes(b"\x80\x02" + b"](" * 100_000 + array + b"e" * 100_000 + b".")
    assert "levels of names" in refusal(path)
    path.write_bytes(b"\x80\x02]q\x00h\x00a" + b".")
    assert "levels of names" in refusal(path)
    # long paths that are found from their ends
    content = b"\x80\x02](" + array + b"eq\x00"
    for level in range(200):
        content += b"](h" + bytes([level]) + b"eq" + bytes([level + 1])
    path.write_bytes(content + b"](" + b"".join(b"h" + bytes([level]) for level in range(201)) + b"e.")
    assert "levels of names" in refusal(path)


def test_deep_keys(path: Path) -> None:
    """Hashing a deep tuple would overflow the stack."""
    path.write_bytes(b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s.")
    with open_tensors(path) as file:
        assert file.ignored == ["builtins.tuple"]


def test_keys_of_one_slot(path: Path) -> None:
    """Integers whose hashes agree: a dict of many of them would take hours to fill."""
    keys = [index * (2**61 - 1) for index in range(1, 4)]
    assert len({hash(key) for key in keys}) == 1
    path.write_bytes(pickle.dumps({0: np.ones(1)} | dict.fromkeys(keys), 2))
    with open_tensors(path) as file:
        assert list(file.infos) == ["0"] and file.ignored == ["builtins.int"] * 3


def test_endless_instructions(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"N0" * 600_000 + b"N.")
    assert "instructions" in refusal(path)


def test_copies_of_one_list(path: Path) -> None:
    """A list that is written once and copied with a few bytes each."""
    pairs = (
        b"\x80\x02](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(10_000)) + b"eq\x00"
    )
    copied = b"ccollections\nOrderedDict\nh\x00\x85R"
    path.write_bytes(pairs + b"0](" + copied * 3_000 + b"e.")
    with at_most(20e6), open_tensors(path) as file:
        assert file.infos == {}
    copied = b"ctorch._utils\n_rebuild_tensor\n("
    copied += b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQK\x00h\x00h\x00tR"
    checkpoint(path, pairs + b"0](" + copied * 3_000 + b"e.")
    with at_most(20e6):
        refusal(path)


def test_calls_that_share_their_arguments(path: Path) -> None:
    """A tuple that is written once and passed with three bytes each, of a class that is not known."""
    shared = b"(" + b"N" * 50_000 + b"tq\x010ca\nb\nq\x00"
    path.write_bytes(b"\x80\x02" + shared + b"0](" + b"h\x00h\x01R" * 2_000 + b"e.")
    with at_most(10e6), open_tensors(path) as file:
        assert len(file.ignored) == 2_000


def test_objects_are_interpreted_once(path: Path) -> None:
    """A chain of parameters of parameters, in thousands of places."""
    chain = b"ctorch._utils\n_rebuild_parameter\nq\x000N" + b"\x85q\x050h\x00h\x05R" * 300 + b"q\x07"
    array = pickle.dumps(np.arange(3.0), 2)[2:-1].replace(b"q\x00", b"q\x08").replace(b"q\x01", b"q\x09")
    path.write_bytes(b"\x80\x02" + chain + b"0](" + array + b"h\x07" * 90_000 + b"e.")
    with open_tensors(path) as file:
        assert list(file.infos) == ["0"] and len(file.ignored) == 90_000


def test_one_old_storage_again_and_again(path: Path) -> None:
    head = legacy_head([("4", 4)])
    path.write_bytes(head + struct.pack("<q", 4) + bytes(16))
    assert list(read_all(path)) == ["4"]
    keys = b"\x80\x02](X\x01\x00\x00\x004q\x00" + b"h\x00" * 1000 + b"e."
    path.write_bytes(head[: head.rindex(b"\x80\x02")] + keys + bytes(8 * 1001))
    assert "a storage that nothing in it refers to" in refusal(path)


def test_absurd_lengths(path: Path) -> None:
    for content in (
        b"X\xff\xff\xff\x7f",
        b"T\xff\xff\xff\xff",
        b"\x8e" + b"\xff" * 8,
        b"\x8b\xff\xff\xff\x7f",
        b"\x8a\xff" + bytes(255),
        b"L" + b"9" * 100_000 + b"L\n",
        b"r\xff\xff\xff\xff",
        b"Np" + b"9" * 60 + b"\n",
        b"\x80\x09",
        b"\x97",
    ):
        path.write_bytes(b"\x80\x04" + content + b"N.")
        with at_most(5e6):
            refusal(path)


def test_zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 * 2**20))
    assert path.stat().st_size < 2**20
    with at_most(5e6):
        assert "100 times its size" in refusal(path)
    # one that lies about its size
    lie = path.read_bytes().replace(struct.pack("<I", 100 * 2**20), struct.pack("<I", 1000))
    path.write_bytes(lie)
    with at_most(10e6):
        refusal(path)


def test_large_pickle_in_an_archive(path: Path) -> None:
    checkpoint(path, bytes(65 * 2**20))
    with at_most(1e6):
        assert "bytes in data.pkl" in refusal(path)


def test_overlapping_members(path: Path) -> None:
    """Many entries in the list of contents that share one compressed part."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(60 * 2**20))
        member = archive.infolist()[0]
        for index in range(1000):
            copy = zipfile.ZipInfo(f"archive/data/{index}")
            copy.compress_type, copy.header_offset = member.compress_type, member.header_offset
            copy.CRC, copy.file_size, copy.compress_size = member.CRC, member.file_size, member.compress_size
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    path.write_bytes(stream.getvalue())
    with at_most(20e6):
        refusal(path)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes there")
def test_list_of_contents_of_absurd_size(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"PK\x03\x04" + bytes(26))
        stream.truncate(2**30)  # a hole: takes no space
        stream.seek(2**30)
        stream.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 2**30, 0, 0))
    with at_most(5e6):
        refusal(path)


def test_stored_member_beyond_the_file(path: Path) -> None:
    claim(path, 0, (4,), (1,))
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02")  # of the storage, in the list of contents
    for size in (2**20, 2**31):
        sizes = struct.pack("<II", size, size)
        path.write_bytes(whole[: entry + 20] + sizes + whole[entry + 28 :])
        refusal(path)


# Streaming


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes there")
def test_opening_reads_only_the_index(path: Path) -> None:
    """Files of 64 GiB, nearly all of it a hole."""
    size = 64 * 2**30
    header = json.dumps(
        {
            "huge": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]},
            "last": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
        }
    ).encode()
    safetensors = struct.pack("<Q", len(header)) + header
    legacy = legacy_head([("huge", size // 4), ("last", 2)])
    for start, gap in ((safetensors, size), (legacy + struct.pack("<q", size // 4), size)):
        with path.open("wb") as stream:
            stream.write(start)
            stream.seek(len(start) + gap)
            stream.write(
                (struct.pack("<q", 2) if start is not safetensors else b"") + struct.pack("<2f", 1, 2)
            )
        with at_most(2e6), open_tensors(path) as file:
            assert file.infos["huge"].shape[0] >= size // 4
            assert file.read("last").tolist() == [1, 2]
        path.unlink()


def legacy_head(storages: list[tuple[str, int]]) -> bytes:
    """A file of PyTorch's old format up to its storages, one tensor on each."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, StorageClaim):
                return ("storage", torch.FloatStorage, str(obj.numel), "cpu", obj.numel, None)
            return None

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, stream, 2)
    Pickler(stream, 2).dump({name: Claim(0, (numel,), (1,), numel) for name, numel in storages})
    pickle.dump([str(numel) for _, numel in storages], stream, 2)
    return stream.getvalue()


def test_reading_takes_one_tensor_at_a_time(path: Path) -> None:
    arrays = {str(index): np.full(2**18, float(index)) for index in range(8)}  # 2 MiB each
    path.write_bytes(pickle.dumps(arrays, 2))
    with path.with_suffix(".npz").open("wb") as stream:
        np.savez_compressed(stream, **{name: array + np.arange(2**18) for name, array in arrays.items()})
    for file_path in (path, path.with_suffix(".npz")):
        with at_most(1e6):
            file = open_tensors(file_path)
        with at_most(11e6), file:
            for name in file.infos:
                assert file.read(name)[0] == float(name)
