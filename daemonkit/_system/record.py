# ruff: noqa: ANN401 - classes are made here, and type checkers see those of dataclasses
"""Classes that are little more than their fields, as `dataclasses` makes them, in less memory.

Importing `dataclasses`, which needs `inspect`, and the code that it compiles for each class would take 2 MB in each
supervisor, and a third of the time until one runs. Type checkers, and whoever asks for the fields, see `dataclasses`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as record
    from dataclasses import field, replace
    from typing import Any, Never
else:

    class _Made:
        """A default that is made for each instance."""

        def __init__(self, make: Callable[[], object]) -> None:
            self.make = make

    class _AsDataclass:
        """An attribute as the like dataclass has it, which is made once somebody asks."""

        def __init__(self, of: Callable[[Any], object]) -> None:
            self.of = of

        def __get__(self, one: object, cls: Any) -> Any:
            import dataclasses  # noqa: PLC0415 - see above

            def as_field(name: str) -> tuple[Any, ...]:
                if name not in cls.__defaults__:
                    return name, "object"
                value = cls.__defaults__[name]
                how = {"default_factory": value.make} if type(value) is _Made else {"default": value}
                return name, "object", dataclasses.field(**how)

            return self.of(dataclasses.make_dataclass(cls.__name__, map(as_field, cls.__match_args__)))

    _set = object.__setattr__

    def _signature(cls: Any) -> object:
        import inspect  # noqa: PLC0415 - see above

        return inspect.signature(cls)

    def field(*, default_factory: Callable[[], object]) -> Any:
        """Return a default that is made for each instance."""
        return _Made(default_factory)

    def record(cls: Any = None, /, *, frozen: bool = False, eq: bool = True) -> Any:
        """Make the annotated names the fields of a class; `frozen` and `eq` as `dataclasses.dataclass` has them."""
        if cls is None:
            return lambda cls: record(cls, frozen=frozen, eq=eq)
        defaults = {name: cls.__dict__[name] for name in cls.__annotations__ if name in cls.__dict__}
        cls.__match_args__ = (*getattr(cls, "__match_args__", ()), *cls.__annotations__)
        cls.__defaults__ = {**getattr(cls, "__defaults__", {}), **defaults}
        cls.__init__, cls.__repr__ = _init, _repr
        cls.__dataclass_fields__ = _AsDataclass(lambda made: made.__dataclass_fields__)
        cls.__signature__ = _AsDataclass(_signature)
        if eq:
            cls.__eq__, cls.__hash__ = _eq, _hash if frozen else None
        if frozen:
            cls.__setattr__, cls.__delattr__ = _refuse_to_set, _refuse_to_delete
        return cls

    def replace(one: Any, /, **changes: object) -> Any:
        """Return a copy with other values for some fields."""
        return type(one)(**{**{name: getattr(one, name) for name in one.__match_args__}, **changes})

    def _init(self: Any, /, *values: object, **named: object) -> None:
        cls = type(self)
        given = dict(zip(cls.__match_args__, values, strict=False))
        fields = {**cls.__defaults__, **given, **named}
        if len(fields) != len(cls.__match_args__) or len(values) + len(named) > len({*given, *named}):
            raise TypeError(f"{cls.__name__} takes {', '.join(cls.__match_args__)}, not {values!r}, {named!r}")
        for name, value in fields.items():
            # Not in self.__dict__: an object that was never asked for it needs less memory, and its fields come faster.
            _set(self, name, value.make() if type(value) is _Made else value)
        if post := getattr(cls, "__post_init__", None):
            post(self)

    def _values(one: Any) -> tuple[object, ...]:
        return tuple([getattr(one, name) for name in one.__match_args__])

    def _repr(self: Any) -> str:
        return (
            f"{type(self).__name__}({', '.join([f'{name}={getattr(self, name)!r}' for name in self.__match_args__])})"
        )

    def _eq(self: Any, other: object) -> bool:
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def _hash(self: Any) -> int:
        return hash(_values(self))

    def _refuse_to_set(_self: Any, name: str, _value: object) -> Never:
        from dataclasses import FrozenInstanceError  # noqa: PLC0415 - see above

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_to_delete(_self: Any, name: str) -> Never:
        from dataclasses import FrozenInstanceError  # noqa: PLC0415 - see above

        raise FrozenInstanceError(f"cannot delete field {name!r}")


__all__ = ["field", "record", "replace"]
