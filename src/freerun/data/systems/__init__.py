"""Chaotic systems from their equations, with the published parameters and Lyapunov exponents."""

from freerun.data.systems.flows import HyperRoessler, Lorenz63, Lorenz96, Roessler, Thomas
from freerun.data.systems.loading import SYSTEMS, SystemOptions, load_system
from freerun.data.systems.others import KuramotoSivashinsky, MackeyGlass, Pendulum
from freerun.data.systems.simulated import System

__all__ = [
    "SYSTEMS", "HyperRoessler", "KuramotoSivashinsky", "Lorenz63", "Lorenz96", "MackeyGlass", "Pendulum", "Roessler",
    "System", "SystemOptions", "Thomas", "load_system",
]  # fmt: skip
