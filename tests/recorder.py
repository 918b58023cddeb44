"""Which operators run below autograd: for tests of what sees them, and of what runs again."""

from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Notes the operators in `seen`, in order; or of each call what `note` makes of it."""

    def __init__(self, note=lambda operator, args: operator):
        super().__init__()
        self.note, self.seen = note, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen.append(self.note(operator, args))
        return operator(*args, **(kwargs or {}))
