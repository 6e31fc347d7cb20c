"""[adapter] in run.toml: the union adapter, with one section for each method of ``fedpeft.catalogue``."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, create_model, model_serializer

from fedpeft.catalogue import METHODS, PLUGINS, AnyMethod
from fedpeft.catalogue.lora import Lora
from fedpeft.catalogue.section import Section

__all__ = ["Adapter", "MethodName"]

S = TypeVar("S", bound=Section)
SlotName = Annotated[str, Field(pattern=r"^(q|k|v|o|up|down|gate)$")]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]


class _Placed(Section):
    layers: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default="all", description="`all`, or how many of the top layers carry adapters."
    )


if TYPE_CHECKING:
    MethodName: TypeAlias = str
    _WithMethods = _Placed
else:
    MethodName = Literal[tuple(method.name for method in METHODS)]
    # In the catalogue's order: the plan that devices parse lists the fields so.
    _WithMethods = create_model(
        "_WithMethods", __base__=_Placed, **{method.name: (method.section | None, None) for method in METHODS}
    )


class Adapter(_WithMethods):
    """The union adapter: every block that any device may train. A method that is absent does not exist in this run."""

    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the adapter's values on the devices, whatever the base is stored in; the class head stays "
        "float32, and so do sums and the coordinator's state.",
    )
    slots: dict[SlotName, ModuleName] | None = Field(
        default=None,
        description="Short names for modules of an architecture that fedpeft does not know: the end of a module's path "
        'inside a layer, as in q = "mixer.query". A refusal lists the modules.',
    )
    head: bool = Field(default=True, description="Train the class head; ignored for causal-lm.")
    head_start: Literal["auto", "class-means", "seed"] = Field(
        default="auto",
        description="`seed`: a small random head. `class-means`: round 1 trains nothing and sums what the base makes "
        "of each class's examples; the head starts from these means (Legate 2023). Not under privacy. `auto`: class "
        "means where there are more classes than train.batch_size, so that no batch shows them all.",
    )
    head_refresh: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="With class means: every so many rounds one measures them again with the adapter as it is by then, "
        "and trains nothing; between them the head stays. 0: measured once, then trained. `auto`: 3 in runs of six "
        'rounds and more whose head_start = "auto" took class means and that set no head_learning_rate, else 0.',
    )
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="Overrides train.learning_rate for the head."
    )

    @model_serializer(mode="wrap")
    def _without_absent_plugins(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """A plan reads the same wherever it is written: what is installed there and not used leaves no trace."""
        written: dict[str, object] = serialize(self)
        return {key: value for key, value in written.items() if value is not None or key not in PLUGINS}

    def of(self, section: type[S]) -> S | None:
        """The settings of the method whose section this is; None: the run does not have it."""
        name = next(method.name for method in METHODS if method.section is section)
        found: S | None = getattr(self, name)
        return found

    def declared(self) -> tuple[tuple[AnyMethod, Any], ...]:
        """The methods that the run has, each with its settings, in the catalogue's order."""
        found = ((method, getattr(self, method.name)) for method in METHODS)
        return tuple((method, settings) for method, settings in found if settings is not None)

    def measuring_rounds(self, rounds: int) -> int:
        """How many of the first ``rounds`` of a run measure class means and train nothing.

        Example:
            >>> Adapter(head_start="class-means").measuring_rounds(8)
            1
            >>> Adapter(head_start="class-means", head_refresh=3).measuring_rounds(8)  # rounds 1, 4 and 7
            3
        """
        if self.head_start != "class-means" or rounds < 1:
            return 0
        return 1 + ((rounds - 1) // self.refresh_every if self.refresh_every else 0)

    @property
    def refresh_every(self) -> int:
        """``head_refresh`` as a number; 0 while it is not decided."""
        return 0 if self.head_refresh == "auto" else self.head_refresh

    @property
    def sketches(self) -> bool:
        """Whether round 1 sums a sketch of the gradient for LoRA's A and trains nothing."""
        lora = self.of(Lora)
        return lora is not None and lora.start == "gradient"

    def lowest_layer(self, layer_count: int) -> int:
        """The lowest layer that carries an adapter; ``layer_count`` where only the head is trained.

        The layers below it are frozen: activations are cached, gradients end there. Trainer, cache and planner ask
        here and nowhere else.

        Args:
            layer_count: of the model.

        Example:
            >>> from fedpeft.catalogue.ia3 import Ia3
            >>> Adapter().lowest_layer(6), Adapter(layers=2, ia3=Ia3()).lowest_layer(6)
            (6, 4)
            >>> Adapter(ia3=Ia3(layers=(3, 5))).lowest_layer(6)
            3
        """
        usual = 0 if self.layers == "all" else layer_count - self.layers
        ranges = [getattr(settings, "layers", None) for _, settings in self.declared()]
        return min((usual if own is None else own[0] for own in ranges), default=layer_count)

    @classmethod
    def having(cls, *sections: Section, **others: object) -> "Adapter":
        """An adapter with these methods.

        Args:
            sections: the methods' settings.
            others: other keys of [adapter].

        Example:
            >>> from fedpeft.catalogue.ia3 import Ia3
            >>> [method.name for method, _ in Adapter.having(Ia3(), head=False).declared()]
            ['ia3']
        """
        names = {method.section: method.name for method in METHODS}
        return cls.model_validate({names[type(one)]: one for one in sections} | others)
