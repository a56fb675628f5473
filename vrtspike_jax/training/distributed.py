"""Joins the hosts of a run, before anything else touches a device."""

import os

import jax


def join_hosts(coordinator: str | None, num_hosts: int | None, host_index: int | None) -> None:
    """Connects this process to the others; alone, it does nothing.

    With all three arguments they are used as they are. With none, TPU pods, Slurm and Open MPI are
    recognised by their environment and JAX finds the rest.

    Args:
        coordinator: `host:port` of the first host.
        num_hosts: how many take part.
        host_index: which this is, from 0.

    Raises:
        ValueError: some of the three are given and some are not.
    """
    given = [value is not None for value in (coordinator, num_hosts, host_index)]
    if all(given):
        jax.distributed.initialize(coordinator, num_hosts, host_index)
    elif any(given):
        raise ValueError("--coordinator, --num_hosts and --host_index belong together: give all")
    elif scheduled():
        jax.distributed.initialize()


def scheduled() -> bool:
    """Whether a scheduler started several processes that belong together."""
    env = os.environ
    slurm = int(env.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_STEP_ID" in env
    open_mpi = int(env.get("OMPI_COMM_WORLD_SIZE", "1") or 1) > 1
    tpu_pod = "," in env.get("TPU_WORKER_HOSTNAMES", "")
    return slurm or open_mpi or tpu_pod
