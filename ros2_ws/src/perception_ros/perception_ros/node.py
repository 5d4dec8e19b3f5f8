"""The lifecycle node `bev`: transitions and wiring, nothing else.

configure    parameters, bundles, golden frames, calibration    loading.py
activate     topics and the inference worker                    inputs.py, perception_loop.py
deactivate   topics and worker end, the engines stay
cleanup      everything is given back
"""

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter

from perception_ros.diagnostics import NodeState, to_diagnostics
from perception_ros.inputs import Inputs
from perception_ros.loading import load_ladder, load_rig, open_bundles, prepare_rig
from perception_ros.outputs import Outputs
from perception_ros.parameters import declare_parameters, read_parameters
from perception_ros.perception_loop import PerceptionLoop
from perception_ros.process import run_node
from perception_ros.rig import Rig
from perception_ros.settings import NodeSettings
from runtime.api import LIDAR, InputError, Ladder, SynchronizerConfig, run_command

TICK_S = 0.005
"""How often time is looked at for frames that are due [s]. Source: ours; what a frame may be late
by where no message comes."""

DIAGNOSTICS_S = 0.5
"""Period of /diagnostics [s]. Source: ours; the usual rate is 1 to 10 Hz."""

AUTOSTART_S = 0.1
"""How often the calibration file is looked for [s]."""


@dataclass(frozen=True, kw_only=True)
class _Configured:
    """What configure makes and cleanup gives back."""

    settings: NodeSettings
    ladder: Ladder
    rig: Rig
    synchronizer: SynchronizerConfig
    outputs: Outputs


@dataclass(frozen=True, kw_only=True)
class _Active:
    """What activate makes and deactivate gives back."""

    loop: PerceptionLoop
    inputs: Inputs
    timer: Any


class BevNode(LifecycleNode):
    """3D boxes and map layers from cameras and a LiDAR.

    What is wrong with parameters, bundles or calibration fails `configure` with one sentence, in
    the log and in the diagnostics; the process stays and may be configured again.
    """

    def __init__(self) -> None:
        """Declare the parameters; with `autostart`, configure and activate as soon as it spins."""
        super().__init__("bev")
        self.finished = threading.Event()
        self._lifecycle, self._problem = "unconfigured", ""
        self._configured: _Configured | None = None
        self._active: _Active | None = None
        declare_parameters(self, NodeSettings)
        self.add_on_set_parameters_callback(self._check_change)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 5)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # ticks also where /clock stops
        self.create_timer(DIAGNOSTICS_S, self._on_diagnostics, clock=self._steady)
        self._started_s = time.monotonic()
        self._autostart = self.create_timer(AUTOSTART_S, self._on_autostart, clock=self._steady)

    def close(self) -> None:
        """Give all threads and engines back."""
        self._deactivate()
        self._cleanup()

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Load the bundles, verify manifests, allocate, compute the golden frames."""
        return self._transition(self._configure, super().on_configure, state, "inactive")

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Connect the topics in and start the worker."""
        return self._transition(self._activate, super().on_activate, state, "active")

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Disconnect the topics in; the engines stay."""
        return self._transition(self._deactivate, super().on_deactivate, state, "inactive")

    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Give the engines back."""
        return self._transition(self._cleanup, super().on_cleanup, state, "unconfigured")

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """Give everything back for good; the process ends with a signal."""
        return self._transition(self.close, super().on_shutdown, state, "finalized")

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """After a mistake of our own: give everything back; configure may be tried again."""
        problem = self._problem
        result = self._transition(self.close, super().on_error, state, "unconfigured")
        self._problem = problem
        return result

    def _transition(
        self,
        work: Callable[[], None],
        of_publishers: Callable[[Any], TransitionCallbackReturn],
        state: Any,
        label: str,
    ) -> TransitionCallbackReturn:
        try:
            work()
        except InputError as error:
            self._problem = str(error)
            self.get_logger().error(self._problem)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # our own mistake; rclpy would say nothing about it
            self._problem = repr(error)
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        self._lifecycle, self._problem = label, ""
        return of_publishers(state)

    def _configure(self) -> None:
        start_s = time.monotonic()
        settings = read_parameters(self, NodeSettings)
        bundles = open_bundles(settings)
        inputs = bundles[0].card.inputs
        cameras = inputs.cameras
        synchronizer = SynchronizerConfig(
            cameras=cameras,
            period_ns=int(settings.period_ms * 1e6),
            wait_ns=int(settings.wait_ms * 1e6),
            window_ns=int(settings.window_ms * 1e6),
            offset_ns={**settings.offsets_ns(cameras), LIDAR: 0},
            max_sweeps=inputs.pillars.num_sweeps,
            frozen_after=settings.frozen_after,
        )
        rig = load_rig(self, settings, (*cameras, LIDAR))
        with ExitStack() as on_error:
            ladder = load_ladder(bundles, settings)  # late, as it takes long
            on_error.callback(ladder.close)
            prepare_rig(ladder, rig, settings)
            outputs = Outputs(
                self,
                ladder.bundle.card.map_classes,
                base_frame=settings.base_frame,
                map_threshold=settings.map_threshold,
            )
            on_error.pop_all()
        self._configured = _Configured(
            settings=settings, ladder=ladder, rig=rig, synchronizer=synchronizer, outputs=outputs
        )
        self.get_logger().info(
            f"bundle {ladder.bundle.digest[:12]} ready after {time.monotonic() - start_s:.1f} s, "
            f"{len(cameras)} cameras"
        )

    def _activate(self) -> None:
        configured = self._configured
        if configured is None:
            raise InputError("The node is not configured: configure it first.")
        with ExitStack() as on_error:  # a worker that is left behind keeps the process alive
            loop = PerceptionLoop(
                configured.ladder,
                configured.rig,
                configured.synchronizer,
                clock_ns=lambda: int(self.get_clock().now().nanoseconds),
                publish=configured.outputs.publish,
                on_error=self._on_error,
            )
            on_error.callback(loop.close)
            cameras = configured.synchronizer.cameras
            inputs = Inputs(self, loop, configured.rig, cameras, configured.settings)
            on_error.callback(inputs.close)
            timer = self.create_timer(TICK_S, loop.tick, clock=self._steady)
            on_error.pop_all()
        self._active = _Active(loop=loop, inputs=inputs, timer=timer)

    def _deactivate(self) -> None:
        if self._active is not None:
            self.destroy_timer(self._active.timer)
            self._active.inputs.close()
            self._active.loop.close()
        self._active = None

    def _cleanup(self) -> None:
        if self._configured is not None:
            self._configured.outputs.close()
            self._configured.ladder.close()
        self._configured = None

    def _on_autostart(self) -> None:
        """Once; before that, wait for a calibration file that is still being written."""
        wanted = self.get_parameter("autostart").value is True
        if wanted and self._lifecycle == "unconfigured":
            path, timeout_s = (
                self.get_parameter(name).value for name in ("calibration", "calibration_timeout_s")
            )
            waited_s = time.monotonic() - self._started_s
            can_wait = isinstance(timeout_s, int | float) and waited_s < timeout_s
            if can_wait and path and _is_awaited(Path(str(path))):
                return
        self.destroy_timer(self._autostart)
        if wanted and self._lifecycle == "unconfigured":
            if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
                self.trigger_activate()

    def _check_change(self, parameters: list[Parameter]) -> SetParametersResult:
        """Our parameters are read at configure: a later change would not be true."""
        ours = {field.name for field in dataclasses.fields(NodeSettings)}
        for parameter in parameters:
            name = parameter.name
            if self._configured is not None and (name in ours or name.startswith("extrinsics.")):
                reason = f"{name} is read at configure: clean the node up, set it, configure again."
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _on_error(self, error: Exception) -> None:
        self.get_logger().error(f"frame lost: {error!r}", throttle_duration_sec=5.0)

    def _on_diagnostics(self) -> None:
        configured, active = self._configured, self._active
        bundle = configured.ladder.bundle if configured else None
        state = NodeState(
            name=self.get_fully_qualified_name(),
            lifecycle=self._lifecycle,
            problem=self._problem,
            bundle_digest=bundle.digest if bundle else "",
            cameras=bundle.card.inputs.cameras if bundle else (),
            map_classes=bundle.card.map_classes if bundle else (),
            max_silent_s=configured.settings.max_silent_s if configured else 0.0,
            loop=active.loop.state() if active else None,
        )
        self._diagnostics.publish(to_diagnostics(state, self.get_clock().now().nanoseconds))


def _is_awaited(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # no file can have this name: configure will say so
        return False


def main() -> None:
    """Run the node; the process ends with 0 on a signal and with 2 on wrong ROS arguments."""
    run_command(lambda: run_node(BevNode))


if __name__ == "__main__":
    main()
