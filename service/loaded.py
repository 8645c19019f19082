"""A model as it runs here: its network, who computes its flow, and both in one graph."""

from dataclasses import dataclass

from model.errors import FlowFault
from model.fused import Fused
from model.session import Session
from model.solver import Solver, fault_of, open_solver
from model.spec import FlowBackend, ModelSpec
from service.observer import Observer
from service.settings import Settings

__all__ = ["Loaded"]


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """What a model's files were opened as. Safe to share among threads."""

    session: Session
    solver: Solver
    """Of clips, and of pairs where nothing is fused."""
    fused: Fused | None
    """Flow and network of pairs in one run, where ONNX Runtime computes the flow."""

    @classmethod
    def of(cls, session: Session, settings: Settings, observer: Observer) -> "Loaded":
        """Open what computes the flow of a session's model; the observer hears where it fails.

        Takes seconds where a graph is built. Raises: SpecMismatch (the spec does not allow the
        backend that the settings name), ModelError (it cannot be had here).
        """
        spec, placement = session.spec, settings.placement

        def fell_back(fault: FlowFault) -> None:
            observer.flow_failed(spec.name, fault, fell_back=True)

        solver = open_solver(spec, settings.flow, placement=placement, on_fallback=fell_back)
        fused = None
        if solver.backend == "onnx":
            fused = Fused.open(session.path, spec, placement)
        return cls(session, solver, fused)

    @property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return self.session.spec

    @property
    def flow_backend(self) -> FlowBackend:
        """Who computes the flow, unless it falls back."""
        return self.solver.backend

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime really runs pairs with."""
        return self.session.provider if self.fused is None else self.fused.provider

    @property
    def fell_back(self) -> bool:
        """Whether a GPU was asked for and not got."""
        graphs = (self.session, self.solver, self.fused)
        return any(one.fell_back for one in graphs if one is not None)

    def fault_of_fused(self, error: BaseException) -> FlowFault | None:
        """Tell what failed on the device of a fused run; None for an error that is not its."""
        return None if self.fused is None else fault_of(error, self.fused.provider)

    def makes_good(self, error: BaseException) -> bool:
        """Whether pairs go on without the fused run that raised this: not one of them is lost."""
        return self.solver.spared and self.fault_of_fused(error) is not None
