"""From a composed config to a trainer; algorithms, world models and environments are ``_target_`` nodes."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchrl.envs import EnvBase

from torchrl_wm import keys
from torchrl_wm.data import StepReplay
from torchrl_wm.envs import action_repeat, factory_of, model_specs, recorded_keys
from torchrl_wm.ranges import COUNT, NUMBER
from torchrl_wm.training.checkpoint import latest_checkpoint, read_checkpoint
from torchrl_wm.training.configuration import OptionError, instantiate, require_parameter
from torchrl_wm.training.evaluation import Evaluator
from torchrl_wm.training.loop import Trainer, with_latents
from torchrl_wm.training.ratio import UpdateRatio
from torchrl_wm.training.run_folder import RunFolder


def build_algorithm(config: DictConfig, env: EnvBase, device: torch.device) -> nn.Module:
    """The algorithm of ``config`` for the specs of ``env``.

    Raises:
        OptionError: for a planner with an algorithm that takes none, and where the algorithm's
            ``two_players`` does not fit the environment.
    """
    two_players = config.algorithm.get("two_players", False)
    if not two_players and _takes_turns(env):
        raise OptionError(
            "In this environment two players take turns: set algorithm.two_players=true, as "
            "algorithm=alphazero does, or choose an algorithm that has this option."
        )
    if two_players and not _takes_turns(env):
        raise OptionError(
            "algorithm.two_players=true needs an environment whose observations say to_play, such as "
            "env=tictactoe: leave it out here."
        )
    parts = {"world_model": instantiate(config.world_model)}
    if config.get("planner") is not None:
        require_parameter(config.algorithm, "planner")
        if "_target_" not in config.planner:
            raise OptionError(
                f"~planner leaves {config.algorithm._target_} without one, but with options of it: leave "
                "~planner out, or choose another, planner=..."
            )
        parts["planner"] = instantiate(config.planner)
    chosen = config.algorithm
    if chosen.get("simulator") is not None and chosen.simulator == config.env.get("factory"):
        parts["simulator"] = factory_of(OmegaConf.to_container(config.env))  # with its own options
        chosen = OmegaConf.merge(chosen, {"simulator": None})
    return instantiate(chosen, *model_specs(env), **parts, device=device)


def _takes_turns(env: EnvBase) -> bool:
    return keys.TO_PLAY in env.full_observation_spec.keys(True, True)


def build_trainer(
    config: DictConfig, device: torch.device, resumed: RunFolder | None = None
) -> Trainer:
    """Assembles the run that ``config`` describes, in a new folder or from a checkpoint.

    Args:
        config (DictConfig): what ``recipes/config/train.yaml`` composes.
        device (torch.device): where the algorithm lives.
        resumed (RunFolder, optional): the run to continue. Defaults to a new one in
            ``config.run_dir``.

    Raises:
        OptionError: for an option that a part does not take.
        FileExistsError: if ``config.run_dir`` is not empty.
        CheckpointError: if the newest checkpoint of ``resumed`` cannot be used.
        RuntimeError: if another process trains in the folder of ``resumed``.
        ValueError: if ``total_steps`` is less than the steps that ``resumed`` has taken.
    """
    training = config.training
    in_training = lambda *names: {f"training.{name}": training[name] for name in names}
    COUNT.check(total_steps=config.total_steps)
    COUNT.check(**in_training("evaluation_envs", "evaluation_episodes"))
    NUMBER.check(**in_training("first_updates", "checkpoint_every"))
    if resumed is not None:  # before anything is built that would have to be closed
        checkpoint = read_checkpoint(latest_checkpoint(resumed.checkpoints))
        if config.total_steps < checkpoint.step:
            raise ValueError(
                f"total_steps={config.total_steps} lies behind the run, which is at step {checkpoint.step}."
            )
    with ExitStack() as unfinished:  # what is built has to be closed if something after it fails
        trainer = _assemble(config, device, resumed, unfinished)
        unfinished.callback(trainer.close)
        if resumed is not None:
            trainer.load(checkpoint)
            resumed.note_start(resumed_at=trainer.steps)
            _keep_end(resumed, config.total_steps)
        unfinished.pop_all()
    return trainer


def _assemble(
    config: DictConfig, device: torch.device, resumed: RunFolder | None, unfinished: ExitStack
) -> Trainer:
    options = dict(config.training)
    env = instantiate(config.env, seed=config.seed)
    unfinished.callback(_close, env)
    evaluated = OmegaConf.merge(config.env, {"num_envs": options.pop("evaluation_envs")})
    evaluation_env = instantiate(evaluated, seed=config.seed + 1)
    unfinished.callback(_close, evaluation_env)
    algorithm = build_algorithm(config, env, device)
    evaluator = Evaluator(
        with_latents(evaluation_env, algorithm.policy),
        algorithm.evaluation_policy,
        options.pop("evaluation_episodes"),
        seed=config.seed,
    )
    run = resumed or RunFolder.create(str(config.run_dir), OmegaConf.to_yaml(config, resolve=True))
    if resumed is None:  # no step was taken: the corrected command may reuse the folder
        unfinished.callback(run.discard)
    return _build_in(run, config, env, algorithm, evaluator, device, options)


def _close(env: EnvBase) -> None:
    if not env.is_closed:
        env.close()


def _keep_end(run: RunFolder, total_steps: int) -> None:
    """Stores the new end of a resumed run, for the next time that it is resumed."""
    config = OmegaConf.create(run.config)
    if config.total_steps != total_steps:
        config.total_steps = total_steps
        run.rewrite(OmegaConf.to_yaml(config))


def _build_in(
    run: RunFolder,
    config: DictConfig,
    env: EnvBase,
    algorithm: nn.Module,
    evaluator: Evaluator,
    device: torch.device,
    options: dict,
) -> Trainer:
    """The parts that write to the folder; ``options`` are the remaining ones of the training."""
    lock = run.lock()
    replay = _build_replay(config, env, algorithm, run)
    ratio = UpdateRatio(
        options.pop("updates"),
        options.pop("every"),
        every_episodes=options.pop("every_episodes"),
        train_ratio=options.pop("train_ratio"),
        batch_steps=replay.batch_size * replay.slice_length,
        first=options.pop("first_updates"),
    )
    trainer = Trainer(
        env,
        algorithm,
        replay,
        ratio,
        total_steps=config.total_steps,
        run_dir=run.path,
        log=instantiate(config.logger, run.path),
        evaluator=evaluator,
        seed=config.seed,
        device=device,
        **options,
    )
    trainer.lock = lock
    return trainer


def _build_replay(
    config: DictConfig, env: EnvBase, algorithm: nn.Module, run: RunFolder
) -> StepReplay:
    """The replay, with enough spare rows that a checkpoint never has to copy observations.

    The algorithm's ``replay_options()`` say what it stores and how it samples.
    """
    wanted = algorithm.replay_options()
    if config.replay.slice_length is not None:
        _check_slice_length(config.replay.slice_length, algorithm, wanted.get("slice_length"))
    decisions = config.training.checkpoint_every // action_repeat(env)
    return instantiate(
        config.replay,
        num_envs=env.batch_size[0],
        action_spec=model_specs(env)[1],
        observation_keys=recorded_keys(env),
        scratch_dir=run.replay,
        slack=max(2 * decisions, 10_000),
        **wanted,
    )


def _check_slice_length(length: int, algorithm: nn.Module, wanted: int | None) -> None:
    name = type(algorithm).__name__
    if wanted not in (None, length):
        raise ValueError(
            f"replay.slice_length={length} cannot be chosen: {name} needs {wanted} by its own options. "
            "Leave it out."
        )
    if length < algorithm.shortest_sequence:
        raise ValueError(
            f"replay.slice_length={length} is too short: the losses of {name}, with these options of it, "
            f"need sequences of at least {algorithm.shortest_sequence} steps."
        )


def load_agent(
    run: RunFolder, device: torch.device, *, checkpoint: str | None = None, **env_options
) -> tuple[nn.Module, EnvBase, int]:
    """The trained algorithm of a run, with fresh environments of the same kind that carry its latents.

    Args:
        run (RunFolder): the run.
        device (torch.device): where the algorithm lives.

    Keyword Args:
        checkpoint (str, optional): folder of a checkpoint. Defaults to the newest of the run.
        **env_options: options of the environment to change, such as ``seed`` and ``num_envs``.

    Returns:
        The algorithm, the environments and the environment step of the checkpoint.
    """
    config = OmegaConf.create(run.config)
    env = instantiate(OmegaConf.merge(config.env, env_options))
    algorithm = build_algorithm(config, env, device)
    found = read_checkpoint(checkpoint or latest_checkpoint(run.checkpoints))
    algorithm.load_state_dict(found.state("algorithm"))
    return algorithm, with_latents(env, algorithm.policy), found.step
