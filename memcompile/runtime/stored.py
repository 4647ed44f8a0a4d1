"""An operator that gives a value a buffer with strides of its own: ``STORED(x, strides)``.

Private API in use: ``torch._inductor.inductor_prims.force_stride_order`` (present in PyTorch 2.11 to 2.15).
"""

from __future__ import annotations

from typing import Any

from torch._inductor.inductor_prims import force_stride_order

STORED: Any = force_stride_order
