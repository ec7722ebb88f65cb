"""Building MuZero's model from specs and sizes."""

from __future__ import annotations

from torch import nn
from torchrl.data import Composite

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.consistency import ConsistencyHead
from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.modules.encoders import Encoder, VectorEncoder
from torchrl_wm.modules.heads import HyperbolicTwoHotHead, actor_head
from torchrl_wm.modules.hidden_dynamics import DenseDynamics, ResidualDynamics
from torchrl_wm.modules.hidden_scaling import HiddenScaling
from torchrl_wm.modules.networks import Activation, Init, Norm, dense
from torchrl_wm.modules.observations import split_observations
from torchrl_wm.modules.residual import ResidualImageEncoder
from torchrl_wm.modules.value_prefix import ValuePrefix
from torchrl_wm.world_models.muzero import MuZeroModel


def make_muzero(
    observation_spec: Composite,
    action_spec: Composite,
    *,
    hidden_size: int = 64,
    units: int = 64,
    layers: int = 2,
    head_layers: int = 1,
    channels: int = 32,
    blocks: int = 1,
    support: int = 300,
    scaling: str = "minmax",
    activation: Activation = "relu",
    norm: Norm | None = None,
    init: Init = "glorot",
    use_symlog: bool = False,
    use_value_prefix: bool = False,
    value_prefix_horizon: int = 5,
    use_consistency: bool = False,
    use_reconstruction: bool = False,
    **keys,
) -> MuZeroModel:
    """MuZero's model for any spec: MLPs for vectors, residual networks for images and boards.

    Args:
        observation_spec (Composite): unbatched specs of the observations. With images alone the hidden
            state is a map; with additional vectors everything goes into one vector.
        action_spec (Composite): unbatched specs of the actions.

    Keyword Args:
        hidden_size (int, optional): size of the hidden state, unless it is a map. Defaults to ``64``.
        units (int, optional): size of the hidden layers. Defaults to ``64``.
        layers (int, optional): hidden layers of representation and dynamics. Defaults to ``2``.
        head_layers (int, optional): hidden layers of the heads. Defaults to ``1``.
        channels, blocks (int, optional): of the residual networks. Default to ``32`` and ``1``.
        support (int, optional): largest atom of rewards and values, after squashing them by a square
            root. Defaults to ``300``, for returns up to 58,000.
        scaling (str, optional): of the hidden state: ``"minmax"``, ``"simnorm"`` or ``"none"``.
        activation, norm, init: of MLPs, see :class:`~torchrl_wm.modules.MLP`.
        use_symlog (bool, optional): squash vector observations, read and decoded. Defaults to ``False``.
        use_value_prefix (bool, optional): predict sums of rewards with a recurrent cell of ``units``
            (EfficientZero). Defaults to ``False``.
        value_prefix_horizon (int, optional): steps after which the sums restart. Defaults to ``5``.
        use_consistency (bool, optional): compare predicted hidden states with those of the observations
            that followed (EfficientZero). Defaults to ``False``.
        use_reconstruction (bool, optional): decode observations. Defaults to ``False``.
        **keys: ``hidden_key``, ``memory_key``, ``value_key``, ``logits_key``, ``is_init_key``,
            ``previous_action_key``.

    Raises:
        ValueError: for an unknown scaling, activation, norm or init (the message lists the valid ones), a
            support below 1, or images of an unsupported size.
        TypeError: for a spec that is not supported; the message names the entry.

    Examples:
        >>> import torch
        >>> from torchrl.data import OneHot, Unbounded
        >>> model = make_muzero(Composite(observation=Unbounded(4)), Composite(action=OneHot(2)))
        >>> td = model.initial([3]).update({"action": torch.eye(2)[[0, 1, 1]]})
        >>> model.step(model.predict(td))["next", "reward"].shape, td["policy_logits"].shape
        (torch.Size([3, 1]), torch.Size([3, 2]))
    """
    encoding = ActionEncoding(action_spec)
    network = {"activation": activation, "norm": norm, "init": init}
    encoder = _encoder(observation_spec, layers, units, channels, blocks, use_symlog, network)
    if encoder.vector is None:
        shape, size = encoder.image.map_shape, encoder.out_features
        representation = nn.Identity()
        dynamics = ResidualDynamics(shape, encoding.size, blocks=blocks)
    else:
        shape, size = None, hidden_size
        representation = dense(encoder.out_features, size, init=init)
        dynamics = DenseDynamics(size, encoding.size, layers=layers, units=units, **network)
    head = {"layers": head_layers, "units": units, **network}
    if use_value_prefix:
        sums = HyperbolicTwoHotHead(units, support=support, **head)
        reward = ValuePrefix(size, sums, horizon=value_prefix_horizon)
    else:
        reward = HyperbolicTwoHotHead(size, support=support, **head)
    decoder = None
    if use_reconstruction:
        sizes = {"units": units, "layers": layers, "blocks": 1}
        decoder = make_decoder(observation_spec, 0, size, "v3", use_symlog=use_symlog, **sizes)
    return MuZeroModel(
        encoder,
        encoding,
        representation,
        dynamics,
        size=size,
        reward_head=reward,
        value_head=HyperbolicTwoHotHead(size, support=support, **head),
        policy_head=actor_head(action_spec, size, out_scale=0.0, **head),
        scaling=HiddenScaling(scaling, shape=shape),
        consistency=ConsistencyHead(size, units=units) if use_consistency else None,
        decoder=decoder,
        **keys,
    )


def _encoder(observation_spec, layers, units, channels, blocks, use_symlog, network) -> Encoder:
    vectors, images = split_observations(observation_spec)
    vector = image = None
    if vectors:
        vector = VectorEncoder(
            vectors, layers=layers, units=units, use_symlog=use_symlog, **network
        )
    if images:
        image = ResidualImageEncoder(images, channels=channels, blocks=blocks)
    return Encoder(vector, image)
