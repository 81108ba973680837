"""The command of the server of samples."""

from typing import Annotated

import typer

from reftune.sampling.vllm import PORT


def serve(
    host: Annotated[
        str, typer.Option(help="address to listen at; 0.0.0.0: from anywhere")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = PORT,
    gpus: Annotated[int, typer.Option(min=1, help="over how many the model is spread")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.05, max=0.98, help="share of each")] = 0.9,
) -> None:
    """Draw samples for runs on other devices, with vLLM: those that name it as compute.vllm_server.

    It takes model and weights from the run. Whoever reaches the port can use it: let only machines of
    yours do so, or set REFTUNE_VLLM_TOKEN on both sides.
    """
    import torch

    from reftune.sampling.vllm.engine import VllmEngine, require_vllm
    from reftune.sampling.vllm.server import SampleServer

    require_vllm()
    gpu = torch.cuda.is_available()
    server = SampleServer(
        (host, port), lambda given: VllmEngine(given, gpu=gpu, memory=gpu_memory, gpus=gpus)
    )
    typer.echo(f"reftune: draws samples at {host}:{server.server_port}; Ctrl-C ends it", err=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()
