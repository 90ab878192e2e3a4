"""The context variables and tenant of a request, for a question that another greenlet asks on its behalf later."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
R = TypeVar("R")

_known: dict[type[BaseDatabaseWrapper], frozenset[str]] = {}  # attributes of wrappers, by their class


class Surroundings:
    """The context variables of a request, and what its middleware has set on the databases, such as a tenant."""

    __slots__ = ("_context", "_set")

    def __init__(self, context: contextvars.Context, databases: Iterable[BaseDatabaseWrapper]) -> None:
        """Note the present state of `context` and `databases`."""
        self._context = context
        self._set = [(wrapper.alias, added) for wrapper in databases if (added := set_by_the_project(wrapper))]

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` in these surroundings and return its result; the calling greenlet keeps its own."""
        context = self._context.copy()  # a context can be entered once at a time only
        return context.run(self._run, function, args, kwargs)

    def _run(self, function: Callable[..., R], args: Any, kwargs: Any) -> R:
        former = {alias: connections[alias] for alias, _ in self._set}
        try:
            for alias, added in self._set:
                if not former[alias].in_atomic_block:  # else it is a test's, which the request has as well
                    connections[alias] = wrapper_with(former[alias], added)
            return function(*args, **kwargs)
        finally:
            for alias, wrapper in former.items():
                if connections[alias] is not wrapper:
                    connections[alias].close()
                    connections[alias] = wrapper


def set_by_the_project(wrapper: BaseDatabaseWrapper) -> dict[str, Any]:
    """Return the attributes of a database's wrapper that the project has set: those that Django does not know."""
    if is_of_django(type(wrapper)):
        return {}
    known = known_attributes(wrapper)
    return {name: value for name, value in vars(wrapper).items() if name not in known}


def is_of_django(kind: type) -> bool:
    """Return whether a class is one of Django's."""
    return kind.__module__.startswith("django.")


def known_attributes(wrapper: BaseDatabaseWrapper) -> frozenset[str]:
    """Return the attributes of a new wrapper of Django's class, or of the wrapper's own class if Django has none."""
    kind = type(wrapper)
    known = _known.get(kind)
    if known is None:
        of_django = next(filter(is_of_django, kind.__mro__))
        plain = (kind if of_django is BaseDatabaseWrapper else of_django)(wrapper.settings_dict, wrapper.alias)
        known = _known[kind] = frozenset((*dir(type(plain)), *vars(plain)))
    return known


def wrapper_with(wrapper: BaseDatabaseWrapper, added: dict[str, Any]) -> BaseDatabaseWrapper:
    """Return a wrapper of the same database, without a connection yet, that has the attributes of another one."""
    new = type(wrapper)(wrapper.settings_dict, wrapper.alias)
    vars(new).update(added)
    new.close()  # the copied state says, for example, that the tenant's schema is set, which this connection has not
    return new
