"""The GPU code inside a binary, as text: kernels with their instructions, registers and memory.

As a program it prints the table of registers that test_cuda_machine_code.py holds the library to:
    python tests/cuda_machine_code.py > tests/cuda_registers.txt
"""

import collections
import dataclasses
import importlib.util
import os
import re
from pathlib import Path

from installed import LIBRARY, output_of, tool

ELEMENT_TYPES = ("double", "float", "c10::Half", "c10::BFloat16")
_ELEMENT = re.compile(r"c10::\w+|\b(?:double|float)\b")
FLOATS = r"(?:B?F16|F32|F64)"
REGISTERS = Path(__file__).parent / "cuda_registers.txt"
GRANTED = 8  # registers that the hardware hands out together


@dataclasses.dataclass
class Kernel:
    """One kernel on one architecture."""

    arch: str  # "sm_90"
    name: str  # "run_planes"
    arguments: list[str]  # of the template
    registers: int
    stack: int  # bytes of a thread
    local: int
    instructions: list[str]  # "LDG.E.128"

    @property
    def family(self):
        """What it is called whatever the elements are: run_planes<PreluForward,false>.

        Without the step that follows its sums, too, which has the elements' type in its name.
        """
        arguments = [
            word for word in self.arguments if word != "NoStep" and not _ELEMENT.search(word)
        ]
        return f"{self.name}<{','.join(arguments)}>" if arguments else self.name

    @property
    def element_type(self):
        """Its own, or that of its step: finish_sums<StoreSums<c10::Half, 1>, float>."""
        found = _ELEMENT.search(" ".join(self.arguments))
        return found and found[0]

    def __str__(self):
        return f"{self.arch} {self.name}<{', '.join(self.arguments)}>"

    def count(self, pattern):
        return sum(bool(re.match(pattern, name)) for name in self.instructions)


# ---- Tools -------------------------------------------------------------------------------------


def cuda_tool(name):
    """From the PATH, the toolkit, or Triton, which every PyTorch with CUDA depends on."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    if triton := importlib.util.find_spec("triton"):
        folders += [
            Path(root) / "backends/nvidia/bin" for root in triton.submodule_search_locations
        ]
    return tool(name, *folders)


def cuobjdump(*options):
    disassembler = Path(cuda_tool("nvdisasm")).parent  # cuobjdump calls it
    environment = {**os.environ, "PATH": f"{disassembler}{os.pathsep}{os.environ['PATH']}"}
    return output_of(cuda_tool("cuobjdump"), *options, env=environment)


def embedded(binary):
    """Architectures that a binary holds machine code for, and those it holds PTX for."""
    machine_code = re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("--list-elf", binary))
    return machine_code, re.findall(r"\.(sm_\w+)\.ptx", cuobjdump("--list-ptx", binary))


def kernels_of(binary):
    """Every kernel for every architecture, from its machine code (SASS)."""
    resources, instructions = _resources(binary), _instructions(binary)
    names = _demangled({symbol for _, symbol in resources})
    return [
        Kernel(arch, *names[symbol], *numbers, instructions[arch, symbol])
        for (arch, symbol), numbers in resources.items()
    ]


def _resources(binary):
    """(architecture, symbol) -> registers, bytes of stack, bytes of local memory."""
    found, arch, symbol = {}, "", ""
    for line in cuobjdump("-res-usage", binary).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r" Function (\w+):", line):
            symbol = match[1]
        elif match := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found[arch, symbol] = [int(number) for number in match.groups()]
    return found


_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def _instructions(binary):
    """(architecture, symbol) -> names of its instructions in order."""
    found, arch, symbol = collections.defaultdict(list), "", ""
    for line in cuobjdump("-sass", binary).splitlines():
        if match := _INSTRUCTION.match(line):
            found[arch, symbol].append(match[1])
        elif match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s+Function : (\w+)", line):
            symbol = match[1]
    return found


def _demangled(symbols):
    """Name and template arguments of each."""
    symbols = sorted(symbols)
    names = output_of(tool("c++filt"), *symbols).splitlines()
    return dict(zip(symbols, map(_name_and_arguments, names), strict=True))


def _name_and_arguments(demangled):
    """void a::run<a::Op<true>, false, float>(int) -> "run", ["Op<true>", "false", "float"]"""
    head = re.sub(r"torch_ext::(\w+::)?", "", demangled.removeprefix("void "))
    name = re.match(r"\w+", head)[0]
    arguments, depth, word = [], 0, ""
    for character in head[len(name) :]:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if depth == 0:
            break
        if depth == 1 and character in "<,":
            arguments.append(word)
            word = ""
        else:
            word += character
    words = [word.strip().replace("> >", ">>") for word in [*arguments, word]]
    return name, [word for word in words if word]


# ---- Rules -------------------------------------------------------------------------------------


def float_atomics(kernel):
    """Instructions that make sums depend on the order of threads.

    Compare-and-swap is among them: it is how what the hardware cannot add becomes atomic (float in
    shared memory, bfloat16 before sm_90). Atomics on integers and barriers are not.
    """
    return sorted(
        {
            name
            for name in kernel.instructions
            if re.match(rf"(?:ATOM|RED(?!UX)|UBLKRED)\w*\..*\b{FLOATS}", name)
            or re.match(r"ATOM\w*\..*\bCAS", name)
        }
    )


def float_atomics_of_ptx(text):
    operation = r"(?:atom|red|multimem\.red|multimem\.ld_reduce|cp\.reduce)"
    kind = r"(?:cas|b?f16(?:x2)?|f32|f64)"
    return sorted(set(re.findall(rf"\b{operation}\.(?:[\w:]+\.)*{kind}\b[\w.:]*", text)))


def local_memory(kernel):
    """Loads and stores of what did not fit into registers."""
    return sorted({name for name in kernel.instructions if re.match(r"(LDL|STL)\b", name)})


# ---- The table of registers --------------------------------------------------------------------


def register_use(kernels):
    """family -> architecture -> the most that any of its kernels takes."""
    use = collections.defaultdict(dict)
    for kernel in kernels:
        of_family = use[kernel.family]
        of_family[kernel.arch] = max(of_family.get(kernel.arch, 0), kernel.registers)
    return use


def read_table(path=REGISTERS):
    """family -> architecture -> registers."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    [_, *archs], *rows = map(str.split, lines)
    return {family: dict(zip(archs, map(int, numbers), strict=True)) for family, *numbers in rows}


def table(use):
    """As text, in units that the hardware hands out."""
    archs = sorted({arch for row in use.values() for arch in row}, key=lambda arch: int(arch[3:]))
    width = max(map(len, use)) + 2
    lines = ["".join(["family".ljust(width), *(arch.rjust(8) for arch in archs)])]
    for family, row in sorted(use.items()):
        granted = [str(-(-row[arch] // GRANTED) * GRANTED).rjust(8) for arch in archs]
        lines.append("".join([family.ljust(width), *granted]))
    return "\n".join(lines)


HEADER = """\
# Registers of a thread that a family of CUDA kernels may take at most, for any type of element, by
# architecture; from nvcc 13.0, rounded up to what the hardware hands out together. An SM has 65,536:
# at 256 threads in a block 64 registers let four blocks run on it at once, 80 three, 128 two.
# After a change that is worth more: python tests/cuda_machine_code.py > tests/cuda_registers.txt"""

if __name__ == "__main__":
    print(HEADER)
    print(table(register_use(kernels_of(LIBRARY))))
