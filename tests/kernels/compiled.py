"""Compiles box kernels for a GPU that need not be there, and says what the machine code uses.

Run as ``python -m tests.kernels.compiled``, without TRITON_INTERPRET; prints one JSON object a line.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vidattn.kernels.backward import box_key_gradient, box_query_gradient
from vidattn.kernels.forward import box_forward
from vidattn.kernels.tiling import choose

KERNELS = {"forward": box_forward, "query": box_query_gradient, "key": box_key_gradient}
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# kernel, dtype, head size, tile, box, rule, text
VARIANTS = [
    ("forward", "bf16", 128, (1, 8, 16), (1, 8, 8), "window", True),
    ("forward", "fp16", 64, (2, 8, 8), (2, 8, 8), "band", False),
    ("query", "bf16", 128, (1, 8, 8), (1, 4, 8), "window", True),
    ("key", "bf16", 64, (1, 1, 64), (1, 1, 64), "disc", False),
]


def types_of(kernel, dtype, size, tile, box):
    """The types of the arguments that are no 32-bit integers, as tensor descriptors."""
    over, through = (box, tile) if kernel == "key" else (tile, box)

    def grid(shape):
        return f"tensordesc<{dtype}[1,{shape[0]},{shape[1]},{shape[2]},{size}]>"

    rows = f"tensordesc<{dtype}[1,{box[0] * box[1] * box[2]},{size}]>"
    types = dict.fromkeys(("out", "grad_query", "grad_key", "grad_value"), f"*{dtype}")
    types |= {"query": grid(over), "slope": grid(over), "key": grid(through), "value": grid(through)}
    types |= dict.fromkeys(("text_key", "text_value", "text_query", "text_slope"), rows)
    types |= dict.fromkeys(("lse", "logs", "delta"), "*fp32")
    types |= dict.fromkeys(("table", "index", "count"), "*i32")
    return types | {"text_valid": "*i64", "scale": "fp32", "slope_scale": "fp32"}


def constants_of(kernel, size, tile, box, rule, text):
    constants = {
        "SIZE": size, "V_SIZE": size, "WIDTH": size, "V_WIDTH": size, "TILE": tile, "BOX": box, "RULE": rule,
        "LISTS": rule != "window", "TEXT": text, "VALID": text, "HEAD_SCALE": False, "DESC": True,
        "PRECISION": "tf32", "head_scale": None,
    }  # fmt: skip
    if not text:
        constants |= dict.fromkeys(("text_key", "text_value", "text_query", "text_slope", "text_valid"))
    if rule == "window":
        constants |= {"index": None, "count": None}
    return {name: value for name, value in constants.items() if name in KERNELS[kernel].arg_names}


def report(kernel, dtype, size, tile, box, rule, text, arch=90):
    """Registers, spilled bytes, shared memory, and whether wgmma and bulk tensor copies are used."""
    function, options = KERNELS[kernel], choose(kernel, f"sm_{arch}", 16, size)
    types, constants = (
        types_of(kernel, dtype, size, tile, box),
        constants_of(kernel, size, tile, box, rule, text),
    )
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t[0] == "*"}
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=aligned)
    launch = {"num_warps": options.warps, "num_stages": options.stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {k.lower(): int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code = made.asm["ptx"]
    return found | {
        "shared": made.metadata.shared,
        "wgmma": code.count("wgmma.mma_async"),
        "copies": code.count("cp.async.bulk.tensor"),
    }


if __name__ == "__main__":
    for variant in VARIANTS if len(sys.argv) < 2 else [VARIANTS[int(n)] for n in sys.argv[1:]]:
        print(json.dumps({"variant": variant, **report(*variant)}), flush=True)
