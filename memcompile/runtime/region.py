"""For whom a compiled graph runs: what was given to ``torch.compile``, found on the stack.

Dynamo's graphs belong to code, not to modules: copies, and blocks of one class, run the same ones. What tells them apart is the
call that they run in: Dynamo's own frame of it knows the module, or the function, and the ``torch.compile`` that made it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn
from torch._dynamo.eval_frame import OptimizeContext, OptimizedModule

_CALL = nn.Module._call_impl.__code__
_FORWARD = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")


@dataclass(frozen=True, slots=True)
class Region:
    """What one ``torch.compile`` made. ``compiler``: an object for each ``torch.compile``, None where it is not known.

    ``module``: what is called, or what the function is a method of or takes first. ``code``: of the function; none for a
    module's forward. Dynamo's graphs live as long as code: nothing here keeps either alive.
    """

    compiler: object = None
    module_ref: weakref.ref[nn.Module] | None = None
    code_ref: weakref.ref[CodeType] | None = None

    @property
    def module(self) -> nn.Module | None:
        """None also when it is gone."""
        return None if self.module_ref is None else self.module_ref()

    @property
    def code(self) -> CodeType | None:
        """None also when it is gone."""
        return None if self.code_ref is None else self.code_ref()

    @property
    def is_over(self) -> bool:
        """Whether what was compiled is gone."""
        return any(ref is not None and ref() is None for ref in (self.module_ref, self.code_ref))

    @property
    def name(self) -> str:
        """As users call it."""
        module, code = self.module, self.code
        return ".".join([*([] if module is None else [type(module).__name__]), *([] if code is None else [code.co_name])])


def wrapper_code() -> CodeType | None:
    """Of what ``torch.compile`` puts around a function ``fn``: a closure with it and with ``self``, called with ``args``."""
    calls = [vars(base)["__call__"].__code__ for base in OptimizeContext.__mro__ if "__call__" in vars(base)]
    inside = (constant for call in calls for constant in call.co_consts if isinstance(constant, CodeType))
    return next((c for c in inside if {"fn", "self"} <= {*c.co_freevars} and "args" in c.co_varnames), None)


_WRAPPER = wrapper_code()


def region_under_way() -> Region | None:
    """The innermost call of something compiled that the caller runs in; None outside of one."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _WRAPPER:
            values = frame.f_locals
            if isinstance(values["self"], OptimizeContext):
                return _region(values["self"], values["fn"], values["args"])
        frame = frame.f_back
    return None


def model_under_way() -> nn.Module | None:
    """The outermost module that the caller is called by, or inside of what was compiled; None outside of one."""
    region, frame, found = region_under_way(), sys._getframe(1), None
    while frame is not None:
        if frame.f_code is _CALL:
            found = _original(frame.f_locals["self"])
        frame = frame.f_back  # type: ignore[assignment]
    return found if found is not None or region is None else region.module


def is_one_of_several() -> bool:
    """Whether the caller's graph is known to be a part of a step: others of its model are compiled by themselves, or Dynamo
    left what was compiled and captures functions inside."""
    model, region, frame = model_under_way(), region_under_way(), sys._getframe(1)
    if model is None or region is None or region.module is None:
        return False
    while frame is not None and frame.f_code is not _WRAPPER:
        if frame.f_code is _CALL and _original(frame.f_locals["self"]) is not region.module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    parts = {_original(m) for m in model.modules() if isinstance(m, OptimizedModule) or m._compiled_call_impl is not None}
    return bool(parts - {model, region.module})


def _original(module: nn.Module) -> nn.Module:
    return module._orig_mod if isinstance(module, OptimizedModule) else module


def region_of(function: Callable[..., Any]) -> Region:
    """What calls of ``function`` run in, be it what ``torch.compile`` returned or, without a compiler, what it was given."""
    if isinstance(function, OptimizedModule):
        return Region(function.dynamo_ctx, weakref.ref(function._orig_mod))
    return _region(_compiler(function), function, ())


def _compiler(function: Any) -> object:
    """What the wrapper that ``torch.compile`` returned for a function has in its closure."""
    function = function.__func__ if isinstance(function, MethodType) else function
    while isinstance(function, FunctionType):
        if function.__dict__.get("_torchdynamo_wrapper_id") == id(function):
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            return next((cell.cell_contents for name, cell in cells if name == "self"), None)
        function = function.__dict__.get("__wrapped__")
    return None


def _region(compiler: object, function: Any, args: tuple[Any, ...]) -> Region:
    function = _unwrapped(function)
    if isinstance(function, nn.Module):
        return Region(compiler, weakref.ref(function))
    owner = args[0] if args else None
    if isinstance(function, MethodType):
        owner, function = function.__self__, _unwrapped(function.__func__)
    call = type(function).__call__ if callable(function) else None
    code = getattr(function, "__code__", None) or getattr(call, "__code__", None)
    code_ref = None if code is None else weakref.ref(code)
    if not isinstance(owner, nn.Module):
        return Region(compiler, None, code_ref)
    return Region(compiler, weakref.ref(_original(owner)), None if code is not None and code.co_name in _FORWARD else code_ref)


def _unwrapped(function: Any) -> Any:
    """Below wrappers, down to a bound method or a module."""
    while not isinstance(function, nn.Module | MethodType) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
