"""What other tools publish for the networks that are planned in int8: peaks of activations, and multiply-adds.

How they count differs from tool to tool (whether the image counts, which operators run in place), so each figure stands
beside the peak without patches that the same source gives. StreamNet's abstract gives no peaks, only means over ten networks:
7.3 times faster and 81 % fewer multiply-adds than MCUNetV2's patches (Zheng et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """``peak_kb`` with ``mac_factor`` times the multiply-adds, and ``base_kb`` layer by layer, as printed in ``source``."""

    tool: str
    net: str
    peak_kb: float
    mac_factor: float
    base_kb: float
    source: str

    def __str__(self) -> str:
        return f"{self.tool} {self.base_kb:g} -> {self.peak_kb:g} at x {self.mac_factor:.2f}"


_MCUNET_V2 = "Lin et al. 2021, arXiv 2110.15352, MobileNetV2 in 4 x 4 patches"
_MSF_CNN = "Huang and Baccelli 2025, arXiv 2505.11483"

PUBLISHED = (
    Published("MCUNetV2", "mobilenetv2-1.0", 172, 1.10, 1372, _MCUNET_V2),
    Published("msf-CNN", "mobilenetv2-0.35", 68.0, 1.10, 194, _MSF_CNN),
    Published("msf-CNN", "mobilenetv2-0.35", 25.8, 1.25, 194, _MSF_CNN),
    Published("msf-CNN", "mobilenetv2-0.35", 15.2, 1.38, 194, _MSF_CNN),
    Published("msf-CNN", "mobilenetv2-0.35", 8.6, 1.68, 194, _MSF_CNN),
    Published("msf-CNN", "mcunet-in3", 94.2, 1.45, 310, _MSF_CNN),
)
