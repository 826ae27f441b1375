"""The Python function around the kernels: checks its tensors, allocates results, computes sizes
and launches.
"""

from __future__ import annotations

from tcc.backends.triton._codes import stored_type
from tcc.backends.triton._kernel import KernelText, Parameter
from tcc.backends.triton._names import Lines, Names, quoted
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Call, Const, Expr, Size, Var, call, walk
from tcc.ir.mapping import Kernel, Mapping, leaves, signature, tensors
from tcc.ir.packed import per_byte

CHECK = '''def _check(name, tensor, dtype, shape, device):
    """Raises where a tensor is not what the kernels were written for."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}, not {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, not on {device}")
    if tensor.numel() >= 2**31:
        raise ValueError(f"{name} has {tensor.numel()} elements; offsets are 32 bits wide")'''
_TORCH = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bool": "bool",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u64": "uint64",
    "u32": "uint32",
    "u16": "uint16",
    "u8": "uint8",
}


def emit_launcher(m: Mapping, kernels: list[KernelText], name: str, module: Names) -> str:
    """The text of the launcher; sizes that no input has are keyword arguments."""
    return _Launcher(m, kernels, name, module).text()


class _Launcher:
    def __init__(self, m: Mapping, kernels: list[KernelText], name: str, module: Names) -> None:
        self.m, self.kernels, self.name = m, kernels, name
        self.names = Names(set(module.taken))
        self.tensor = {t.name: self.names.fresh(t.name) for t in m.inputs}
        self.size: dict[str, str] = {}
        self.lines = Lines()

    def text(self) -> str:
        add = self.lines.add
        for r in self.m.ranks:
            self.size[r.name] = self.names.fresh(r.name)
        found = self._from_shapes()
        free = [r.name for r in self.m.ranks if r.size is None and r.name not in found]
        for rank, source in found.items():
            add(f"{self.size[rank]} = {source}")
        for name, size in self._in_order():
            add(f"{self.size[name]} = {self._expr(size)}")
        device = self.names.fresh("device")
        inputs = list(self.tensor.values())
        add(f"{device} = {inputs[0]}.device" if inputs else f'{device} = torch.device("cuda")')
        for t in self.m.inputs:
            shape = t.shape
            if t.packed:
                shape = (*shape[:-1], call("floordiv", shape[-1], Const(per_byte(t))))
            add(
                f"_check({t.name!r}, {self.tensor[t.name]}, torch.{stored_type(t)}, "
                f"{self._shape(shape)}, {device})"
            )
        for t in self.m.outputs:
            if t.name not in self.tensor:
                self._allocate(t.name, t.dtype.name, t.shape, device)
        for b in self.m.memory:
            self._allocate(b.name, b.dtype.name, b.dims, device)
        for k in self.kernels:
            self._launch(k)
        add(f"return {', '.join(self.tensor[t.name] for t in self.m.outputs)}")
        parameters = inputs + (["*"] if free else []) + [self.size[r] for r in free]
        doc = quoted(
            ", ".join(map(str, self.m.inputs)) + " -> " + ", ".join(map(str, self.m.outputs))
        )
        return "\n".join(
            [f"def {self.name}({', '.join(parameters)}):", f'    """{doc}"""', *self.lines.text]
        )

    def _from_shapes(self) -> dict[str, str]:
        """Where the size of each rank is read from."""
        fixed = {r.name for r in self.m.ranks if r.size is not None}
        found: dict[str, str] = {}
        for t in self.m.inputs:
            for n, s in enumerate(t.shape):
                if isinstance(s, Size) and s.rank not in fixed:
                    many = f" * {per_byte(t)}" if t.packed and n == len(t.shape) - 1 else ""
                    found.setdefault(s.rank, f"{self.tensor[t.name]}.shape[{n}]{many}")
        return found

    def _in_order(self) -> list[tuple[str, Expr]]:
        """The ranks of given size, each after those it is computed from."""
        pending = [(r.name, r.size) for r in self.m.ranks if r.size is not None]
        out: list[tuple[str, Expr]] = []
        while pending:
            names = {name for name, _ in pending}
            ready = [
                (name, size)
                for name, size in pending
                if not any(isinstance(n, Size) and n.rank in names for n in walk(size))
            ]
            if not ready:
                raise CompileError("T0110", f"the size of rank `{pending[0][0]}` depends on itself")
            out += ready
            pending = [p for p in pending if p not in ready]
        return out

    def _expr(self, e: Expr) -> str:
        if isinstance(e, Const):
            return repr(e.value)
        if isinstance(e, Size):
            return self.size[e.rank]
        assert isinstance(e, Call)
        args = [self._expr(a) for a in e.args]
        if e.op == "neg":
            return f"(-{args[0]})"
        if e.op in ("max", "min"):
            return f"{e.op}({', '.join(args)})"
        return f"({args[0]} {'//' if e.op == 'div' else e.spec.infix} {args[1]})"

    def _shape(self, shape: tuple[Expr, ...]) -> str:
        parts = [self._expr(s) for s in shape]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"

    def _allocate(self, name: str, dtype: str, shape: tuple[Expr, ...], device: str) -> None:
        self.tensor[name] = self.names.fresh(name)
        made = "empty(" if self._whole(name) else "full("
        fill = "" if made == "empty(" else f"{tensors(self.m)[name].fill!r}, "
        self.lines.add(
            f"{self.tensor[name]} = torch.{made}{self._shape(shape)}, {fill}dtype=torch.{_TORCH[dtype]}, "
            f"device={device})"
        )

    def _whole(self, name: str) -> bool:
        """Whether one leaf writes every element, so that no gap needs the fill."""
        c = signature(self.m)
        for k in self.m.kernels:
            if not isinstance(k, Kernel):
                continue
            for d in leaves(k.body):
                e, extents = d.einsum, dict(k.variables)
                plain = [i.name for i in e.indices if isinstance(i, Var)]
                if e.target == name and len(set(plain)) == len(e.indices):
                    shape = c.tensors[name].shape
                    if all(c.same_size(extents[v], s) for v, s in zip(plain, shape, strict=True)):
                        return True
        return False

    def _launch(self, k: KernelText) -> None:
        add = self.lines.add
        counts = []
        for extent, step, _ in k.grid:
            shown = self._expr(extent)
            counts.append(f"triton.cdiv({shown}, {step})" if step > 1 else shown)
        add(f"grid = {' * '.join(counts) or '1'}")
        add("if grid > 0:")
        self.lines.depth += 1
        arguments: dict[str, list[str]] = {}
        for p in k.parameters:
            group = f"{p.kind} {p.of if p.kind == 'stride' else ''}"
            arguments.setdefault(group, []).append(self._argument(p))
        add(f"{k.name}[(grid,)](")
        self.lines.depth += 1
        for values in arguments.values():
            add(f"{', '.join(values)},")
        add(f"num_warps={k.warps}, num_stages={k.stages},")
        self.lines.depth -= 1
        add(")")
        self.lines.depth -= 1

    def _argument(self, p: Parameter) -> str:
        if p.kind == "pointer":
            return self.tensor[p.of]
        if p.kind == "stride":
            return f"{self.tensor[p.of]}.stride({p.dimension})"
        return self.size[p.of] if p.kind == "size" else f"{p.name}={p.value}"
