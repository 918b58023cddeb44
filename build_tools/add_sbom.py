"""Adds a software bill of materials to a wheel: CycloneDX, in .dist-info/sboms (PEP 770).

    python build_tools/add_sbom.py WHEEL

It names what is compiled into the wheel from elsewhere (headers) and what the wheel needs to run. No
library is copied into it.
"""

import json
import os
import subprocess
import sys
import tempfile
import uuid
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from find_torch import find_torch
from packageurl import PackageURL


def bill_of_materials(build: dict[str, str | None], tag: str) -> Bom:
    torch = find_torch()
    assert torch is not None and torch.minor == build["torch"]
    product = _library("torch_ext", build["version"], "BSD-3-Clause", "the product")
    used = [
        _library("torch", torch.version, "BSD-3-Clause", "headers compiled in; needed to run"),
        _library("pybind11", version("pybind11"), "BSD-3-Clause", "headers compiled in"),
    ]
    if cuda := build["cuda"]:
        used += [
            Component(
                type=ComponentType.LIBRARY,
                name="cuda-toolkit",
                version=cuda,
                scope=ComponentScope.REQUIRED,
                properties=[_use("headers compiled in; its runtime comes with torch")],
            )
        ]
    bom = Bom(
        components=used,
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"torch_ext/{build['version']}/{tag}"),
    )
    bom.metadata.component = product
    bom.metadata.timestamp = datetime.fromtimestamp(
        int(os.environ.get("SOURCE_DATE_EPOCH", datetime.now().timestamp())), timezone.utc
    )
    bom.register_dependency(product, used)
    return bom


def _library(name: str, version: str, license_expression: str, use: str) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=name,
        purl=PackageURL("pypi", None, name, version),
        licenses=[LicenseExpression(license_expression)],
        scope=ComponentScope.REQUIRED,
        properties=[_use(use)],
    )


def _use(text: str) -> Property:
    return Property(name="torch_ext:use", value=text)


def add_sbom(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _wheel_tool("unpack", "--dest", folder, wheel)
        [unpacked] = Path(folder).iterdir()
        [dist_info] = unpacked.glob("*.dist-info")
        build = json.loads((unpacked / "torch_ext" / "_build.json").read_text())
        text = JsonV1Dot6(bill_of_materials(build, wheel.stem)).output_as_string(indent=2)
        (dist_info / "sboms").mkdir()
        (dist_info / "sboms" / "torch_ext.cdx.json").write_text(text + "\n")
        _wheel_tool("pack", "--dest-dir", wheel.parent, unpacked)


def _wheel_tool(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "wheel", *map(str, arguments)], check=True)


if __name__ == "__main__":
    add_sbom(Path(sys.argv[1]))
