"""Learning curves published for the same tasks, digitised from the project page of "Skill-based Meta-Reinforcement Learning" (ICLR 2022).

Mean over ten unseen tasks of the return of the stochastic training episode, by episode. Values between the axis ticks are interpolated on
the page's non-linear axis, so they are good to a few hundredths (maze) or tenths (kitchen).
"""

from typing import Final

Curve = dict[int, float]

MAZE: Final[dict[str, Curve]] = {
    "SiMPL (published)": {
        20: 0.43, 28: 0.63, 35: 0.76, 49: 0.73, 63: 0.89, 77: 0.77, 100: 0.93, 112: 0.96, 126: 0.84, 200: 0.92, 250: 0.96, 300: 0.97, 322: 0.90,
    },
    "SPiRL (published)": {
        0: 0.23, 20: 0.20, 28: 0.43, 35: 0.49, 49: 0.36, 63: 0.44, 77: 0.57, 100: 0.64, 112: 0.63, 126: 0.59, 150: 0.61, 200: 0.76, 250: 0.79,
    },
    "MTRL (published)": {
        0: 0.29, 20: 0.26, 28: 0.39, 35: 0.25, 49: 0.39, 63: 0.46, 77: 0.44, 100: 0.62, 112: 0.66, 126: 0.52, 150: 0.68, 200: 0.79, 250: 0.81,
    },
}  # fmt: skip

KITCHEN: Final[dict[str, Curve]] = {
    "SiMPL (published)": {
        21: 1.72, 26: 2.00, 36: 2.14, 46: 2.06, 51: 2.42, 56: 2.50, 66: 2.46, 76: 2.39, 86: 2.61, 96: 2.53, 100: 2.58, 116: 2.85, 131: 2.76, 150: 2.70, 176: 2.80, 200: 2.69,
    },
    "SPiRL (published)": {
        0: 0.61, 21: 1.0, 26: 1.09, 36: 1.36, 46: 1.03, 51: 1.45, 56: 1.04, 66: 1.27, 76: 1.35, 86: 1.8, 96: 2.15, 100: 1.91, 116: 1.92, 131: 2.06, 150: 2.27, 176: 2.40, 200: 2.25,
    },
    "MTRL (published)": {
        0: 0.82, 21: 0.85, 26: 0.99, 36: 0.98, 46: 0.99, 51: 1.14, 56: 1.04, 66: 1.09, 76: 1.47, 86: 1.8, 96: 1.97, 100: 2.01, 116: 2.03, 131: 2.31, 150: 2.21, 176: 2.44, 200: 2.2,
    },
}  # fmt: skip

PUBLISHED: Final = {"maze": MAZE, "kitchen": KITCHEN}
