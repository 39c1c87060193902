"""The hook acts in the interpreter that imports the package first, so each test is an interpreter of its own."""

import subprocess
import sys

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_package_alone_imports_no_torch():
    done = python("import sys, prism_cli; print([m for m in ('torch', 'torchvision') if m in sys.modules])")
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("first", ["torchvision", "torch, torchvision"])
def test_torchvision_imports_after_the_package_and_the_hook_goes_away(first):
    code = (
        "import sys, prism_cli\n"
        "hooks = lambda: sum(type(f).__name__ == '_DeclareMissingOps' for f in sys.meta_path)\n"
        f"before = hooks()\nimport {first}\nafter = hooks()\n"
        "from torchvision.transforms import v2\nprint('fine', before, after)"
    )
    done = python(code)
    assert done.stdout == "fine 1 0\n", done.stderr


def test_a_missing_torchvision_is_still_missing():
    code = (
        "import sys, prism_cli\n"
        "sys.path[:] = []\n"
        "try: import torchvision\nexcept ModuleNotFoundError as error: print(error.name)"
    )
    assert python(code).stdout == "torchvision\n"
