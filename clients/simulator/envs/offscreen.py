"""Pictures of a MuJoCo model without a screen."""

import os
import sys
import weakref
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

SAMPLES = 4
"""Points of a pixel that are drawn and averaged."""
BACKGROUND = 235
"""Grey of what lies behind everything."""


class OffscreenRenderer:
    """Draws a model into arrays, through one of its cameras (by name) or a free one (``mujoco.MjvCamera``).

    The drawing backend is ``MUJOCO_GL`` when that is set (``egl``, ``osmesa``, ``glfw``), else EGL on Linux, which needs no display, and
    the system's own elsewhere. It is loaded here and not on import, so that simulating needs no graphics library.

    Drawn plainly, on one grey and without shadows: in the kitchen, whose four lights each throw one, they cost eight ninths of the time
    of a picture (1.2 s against 0.13 on one core) and hide what happens.

    Raises:
        RuntimeError: the backend cannot be loaded; the message says what to install or set.
    """

    def __init__(self, model: Any, camera: Any, *, width: int, height: int) -> None:
        self._model = model
        # The buffer holds one picture: some models ask for one of many megapixels, which costs hundreds of megabytes.
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        model.vis.quality.offsamples, model.vis.quality.shadowsize = SAMPLES, 0
        _plain_background(model)
        self._context, self._drawing = _open(model, width, height)
        # EGL is shut down when the interpreter ends: the context has to go before, however the program is left.
        self._close = weakref.finalize(self, self._context.free)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._options = mujoco.MjvOption()
        self._camera = _fixed_camera(model, camera) if isinstance(camera, str) else camera
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        self._viewport = mujoco.MjrRect(0, 0, width, height)

    def render(self, data: Any) -> NDArray[np.uint8]:
        """Draw the state in ``data``: RGB [height, width, 3], row 0 at the top."""
        self._context.make_current()
        # A step leaves the bodies' places as they were before it; these recompute them and touch nothing that a step depends on.
        for refresh in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
            refresh(self._model, data)
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._drawing)
        pixels = np.empty((self._viewport.height, self._viewport.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._drawing)
        return np.flipud(pixels).copy()

    def close(self) -> None:
        """Free the graphics context; a second call does nothing."""
        if self._close.alive:
            self._context.make_current()
            self._drawing.free()
            self._close()


def _fixed_camera(model: Any, name: str) -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = model.camera(name).id
    return camera


def _plain_background(model: Any) -> None:
    for sky in np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
        size = model.tex_height[sky] * model.tex_width[sky] * model.tex_nchannel[sky]
        model.tex_data[model.tex_adr[sky] : model.tex_adr[sky] + size] = BACKGROUND


def _open(model: Any, width: int, height: int) -> tuple[Any, Any]:
    """The graphics context, made current, and what of the model lies in it."""
    backend = os.environ.get("MUJOCO_GL", "").lower() or ("egl" if sys.platform == "linux" else "")
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            GLContext = mujoco.GLContext
        context = GLContext(width, height)
        context.make_current()
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
    except Exception as error:  # what is missing surfaces as ImportError, AttributeError, OSError, an error of PyOpenGL or of MuJoCo
        raise RuntimeError(
            f"cannot draw with the graphics backend {backend or 'of this system'!r} ({type(error).__name__}: {error}). On Linux install "
            "libegl1 (with Mesa: libgl1-mesa-dri), or libosmesa6 and set MUJOCO_GL=osmesa; or run with render_mode=None"
        ) from error
