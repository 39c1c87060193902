"""constraints.txt: the newest versions that pyproject.toml's ranges allow, resolved by pip (`make constraints`)."""

import json
import subprocess
import sys
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# Extras that CI installs into one environment. `deepspeed` is part of `dev`; `vllm` and `qlora` need a GPU.
EXTRAS = ("dev", "eval")
# Installers: environments bring their own, and vLLM's CPU build wants an old one.
LEFT_OUT = {"prism-cli", "pip", "setuptools", "wheel"}
HEADER = f"""\
# Versions that the tests ran with, for prism-cli[{",".join(EXTRAS)}]; `make constraints` writes them.
"""


def resolve() -> dict[str, str]:
    """Name → version of all that the extras pull in, without local versions such as +cpu: those are the machine's."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run([*command, f"{ROOT}[{','.join(EXTRAS)}]"], stdout=subprocess.PIPE, check=True, text=True)
    packages = [package["metadata"] for package in json.loads(done.stdout)["install"]]
    versions = {canonicalize_name(package["name"]): Version(package["version"]).public for package in packages}
    return {name: version for name, version in versions.items() if name not in LEFT_OUT}


if __name__ == "__main__":
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(resolve().items()))
    (ROOT / "constraints.txt").write_text(HEADER + lines, encoding="utf-8")
