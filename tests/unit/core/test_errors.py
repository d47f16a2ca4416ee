"""The error tree: stable codes, true statuses, and errors that survive the way between actors."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from backendai_ray.core import errors
from backendai_ray.core.errors import BackendError, SessionNotFound, all_errors, error_from_code

CLASSES = sorted(all_errors().values(), key=lambda cls: cls.code)


def test_every_class_has_a_code_of_its_own() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, BackendError)]
    assert len({cls.code for cls in classes}) == len(classes)
    assert set(classes) <= set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code)
def test_each_survives_pickling_and_copying(cls: type[BackendError]) -> None:
    error = cls("what happened", field="name", number=3)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert (twin.message, twin.details) == ("what happened", {"field": "name", "number": 3})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code)
def test_each_has_a_sentence_and_a_true_status(cls: type[BackendError]) -> None:
    assert cls().message == cls.title
    assert cls.title[0].isupper()
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code)
    assert 400 <= cls.http_status < 600


def test_the_tree_in_the_docstring_is_the_tree_there_is() -> None:
    drawn = dict(re.findall(r"(\w+) +(4\d\d|5\d\d)\b", errors.__doc__ or ""))
    del_root = {cls.__name__: str(cls.http_status) for cls in CLASSES if cls.__module__ == errors.__name__}
    assert drawn == {name: status for name, status in del_root.items() if name != "BackendError"}


def test_from_a_code() -> None:
    error = error_from_code("session-not-found", "gone", {"session_id": "s"})
    assert isinstance(error, SessionNotFound)
    assert error.details == {"session_id": "s"}
    unknown = error_from_code("of-the-future", "new", None)
    assert type(unknown) is BackendError
    assert unknown.message == "new"
