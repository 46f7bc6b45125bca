"""What compiled loops do with the blocks of task vectors: `loops` hands them over, `kernels` are the loops.

The kernels import numba, which may not be there: nothing but `loops` imports them, and only when they are worth it.
"""

from isthmus.combine.compiled.loops import Kept, Mask, Pair, Sum, Unavailable, allow, merged, pairs

__all__ = ["Kept", "Mask", "Pair", "Sum", "Unavailable", "allow", "merged", "pairs"]
