"""The wheel and the source distribution as files: names, metadata, what is in them.

tests/test_native_library.py looks at the libraries; test_installed.py runs it on the wheel.
"""

import importlib.metadata
import json
import re
import subprocess
import tarfile
import zipfile
from email.parser import HeaderParser

import pytest
import torch
from packaging.version import Version
from programs import ROOT, TORCH_MINOR, output_of

LIBRARIES = ["torch_ext/lib/libtorch_ext.so", "torch_ext/_C.*.so"]
# What a library may ask for: the system's, and what every torch brings.
SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0"}
FROM_TORCH = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1"}
FROM_CUDA_TORCH = {"libtorch_cuda.so", "libc10_cuda.so", "libcudart.so.13"}


@pytest.fixture(scope="module")
def built(unpacked):
    return json.loads((unpacked / "torch_ext" / "_build.json").read_text())


@pytest.fixture(scope="module")
def metadata(unpacked):
    [path] = unpacked.glob("*.dist-info/METADATA")
    return HeaderParser().parsestr(path.read_text())


@pytest.fixture(params=LIBRARIES, ids=["operators", "python_module"])
def library(request, unpacked):
    [path] = unpacked.glob(request.param)
    return path


def names_in(wheel):
    """Files of a wheel, the folder of its metadata shortened."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return sorted(re.sub(r"^torch_ext-[^/]*\.dist-info/", "dist-info/", name) for name in names)


def test_it_is_named_after_torch_and_cuda(wheel, metadata, built):
    cuda = f"cu{built['cuda'].replace('.', '')}" if built["cuda"] else "cpu"
    assert metadata["Version"].split("+")[1] == f"pt{TORCH_MINOR}{cuda}"
    assert metadata["Version"] == built["version"]
    assert wheel.name.startswith(f"torch_ext-{built['version']}-cp")


def test_it_asks_for_the_torch_minor_that_it_was_built_for(metadata):
    found = Version(torch.__version__)
    oldest = found.public if found.is_prerelease else f"{TORCH_MINOR}.0"
    [requirement] = [
        text for text in metadata.get_all("Requires-Dist") if text.startswith("torch<")
    ]
    assert requirement == f"torch<{found.major}.{found.minor + 1},>={oldest}"


def test_it_is_below_15_megabytes(wheel, built):
    assert wheel.stat().st_size < (15_000_000 if built["cuda"] else 2_000_000)


def test_it_holds_these_files_and_no_others(wheel, unpacked):
    modules = {f"torch_ext/{path.name}" for path in ROOT.glob("torch_ext/*.py")}
    headers = {
        f"torch_ext/include/torch_ext/{path.name}"
        for path in ROOT.glob("csrc/include/torch_ext/*.h")
    }
    [module] = unpacked.glob("torch_ext/_C.*.so")
    cmake = "torch_ext/lib/cmake/torch_ext/torch_ext"
    assert len(headers) >= 3
    assert set(names_in(wheel)) == {
        *modules,
        *headers,
        *("torch_ext/py.typed", "torch_ext/_C.pyi", "torch_ext/_build.json"),
        *("torch_ext/lib/libtorch_ext.so", f"torch_ext/{module.name}"),
        *(f"{cmake}-config.cmake", f"{cmake}-config-version.cmake", f"{cmake}-torch.cmake"),
        *("dist-info/METADATA", "dist-info/WHEEL", "dist-info/RECORD", "dist-info/top_level.txt"),
        *("dist-info/licenses/LICENSE", "dist-info/sboms/torch_ext.cdx.json"),
    }


def test_its_bill_of_materials_names_what_is_in_it_and_what_it_needs(unpacked, built):
    [path] = unpacked.glob("*.dist-info/sboms/torch_ext.cdx.json")
    bill = json.loads(path.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["version"] == built["version"]
    versions = {component["name"]: component["version"] for component in bill["components"]}
    assert versions.pop("torch") == torch.__version__
    assert versions.pop("pybind11") == importlib.metadata.version("pybind11")
    assert versions.pop("cuda-toolkit", None) == built["cuda"]
    assert versions == {}


def test_its_libraries_need_only_the_system_and_torch(library, built):
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-dW", library)))
    assert "libtorch_cpu.so" in needed
    allowed = SYSTEM | FROM_TORCH | (FROM_CUDA_TORCH if built["cuda"] else set())
    if library.name.startswith("_C."):  # of the operators, no Python
        allowed |= {"libtorch_ext.so", "libtorch_python.so"}
    loaders = {name for name in needed if name.startswith("ld-linux")}
    assert needed - allowed - loaders == set()


# ---- The source distribution -------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_sources(sdist):
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames() if "/" in name}


def test_the_source_distribution_is_for_every_supported_torch(sdist):
    with tarfile.open(sdist) as archive:
        [name] = [n for n in archive.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", n)]
        metadata = HeaderParser().parsestr(archive.extractfile(name).read().decode())
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["Version"])
    assert re.match(r"torch<[\d.]+,>=[\d.]+$", metadata.get_all("Requires-Dist")[0])


def test_the_source_distribution_has_what_git_has_but_ci(packed_sources):
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    left_out = (".ci/", ".gitignore")
    wanted = {name for name in files if not name.startswith(left_out) and (ROOT / name).is_file()}
    assert wanted - packed_sources == set()


def test_the_source_distribution_has_nothing_that_was_built(packed_sources):
    built = re.compile(r"\.(so|o|a|pyc|whl)$|_build\.json$|^build/|^torch_ext/(lib|include)/")
    assert [name for name in packed_sources if built.search(name)] == []
