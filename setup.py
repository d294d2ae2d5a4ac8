"""Lists the packages, and compiles the kernel's variants into a wheel. Everything else stands in pyproject.toml.

OCTVIDEO_BUILD_KERNEL=0 leaves them out: the wheel is then one for any platform. With 1, or with names of variants
("avx2,avx512": only these are compiled), a missing or failing compiler is an error; otherwise a warning says so, and
the kernel is left out.
"""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDER = Path("octvideo/octave/kernel")
KERNEL = runpy.run_path(str(FOLDER / "variants.py"))
COMPILER = KERNEL["find_compiler"]()
WANTED = os.environ.get("OCTVIDEO_BUILD_KERNEL", "")
HAS_KERNEL = WANTED not in ("", "0") or (WANTED != "0" and COMPILER is not None)
NAMES = set() if WANTED in ("", "0", "1") else set(WANTED.split(","))
if unknown := NAMES - {variant.name for variant in KERNEL["VARIANTS"]}:
    sys.exit(f"OCTVIDEO_BUILD_KERNEL: no variant {', '.join(sorted(unknown))} in {FOLDER}/variants.py")


class BuildWithKernel(build_py):
    """Puts the compiled variants beside the Python files; an editable installation compiles at first use instead."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, FOLDER, "prebuilt")
        shutil.rmtree(folder, ignore_errors=True)  # older ones, in a build folder that was kept
        if HAS_KERNEL:
            self.compile_variants(folder)
        elif WANTED != "0":
            self.warn("no C++ compiler: the wheel has no compiled kernel, and is one for any platform")

    def compile_variants(self, folder: Path) -> None:
        try:
            if COMPILER is None:
                raise OSError(f"there is no {os.environ.get('CXX') or 'C++ compiler'}")
            for variant in KERNEL["VARIANTS"]:
                if variant.machine == KERNEL["MACHINE"] and (not NAMES or variant.name in NAMES):
                    KERNEL["compile_to"](folder / variant.file.name, COMPILER, *variant.flags)
        except (OSError, subprocess.SubprocessError) as error:
            said = f"the kernel can't be compiled: {(getattr(error, 'stderr', None) or str(error)).strip()[:2000]}"
            if WANTED:
                sys.exit(said)
            self.warn(f"{said}\nThe wheel has no compiled kernel.")


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return HAS_KERNEL


class WheelForAnyPython(bdist_wheel):
    """The kernel is loaded by ctypes, so that all versions of Python can use it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages(include=["octvideo", "octvideo.*"]), "octvideo.configs"],
    package_dir={"octvideo.configs": "configs"},
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithKernel, "bdist_wheel": WheelForAnyPython},
)
