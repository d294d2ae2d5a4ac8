"""The tiny data set of the tests of the command line, for comparisons that train."""

from tests.cli.conftest import tiny_config, tiny_data, workplace

__all__ = ["tiny_config", "tiny_data", "workplace"]
