"""The loaders are found under `vasomim_hf.data`, and nothing is imported before one is used."""

import ast
from pathlib import Path

import pytest

import vasomim_hf.data


def test_the_names_are_sorted_and_what_the_type_checker_sees():
    tree = ast.parse(Path(vasomim_hf.data.__file__).read_text())
    seen = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    ]
    assert vasomim_hf.data.__all__ == sorted(seen)
    assert set(seen) <= set(dir(vasomim_hf.data))


@pytest.mark.parametrize("name", vasomim_hf.data.__all__)
def test_every_name_is_a_function_of_the_package(name: str):
    function = getattr(vasomim_hf.data, name)
    assert function.__name__ == name
    assert function.__module__.startswith("vasomim_hf.data.")


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_nothing"):
        getattr(vasomim_hf.data, "load_" + "nothing")
