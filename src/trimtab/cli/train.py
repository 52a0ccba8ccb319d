"""``trimtab train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A name from `trimtab list`, or a file.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="Text, JSONL, CSV or Parquet: file, folder or glob; or a dataset's name."
        ),
    ],
    run: Annotated[
        str | None, typer.Option("--run", "--run-dir", help="The run's folder (default: runs/CONFIG).")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option("--from", help="Pretrained weights: a folder or hub id (default: random).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="A tokenizer's folder or hub id (default: train one).")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Times through the data (default: 1).")
    ] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Tokens to train on, such as 300M.")] = None,
    resume: Annotated[
        str, typer.Option("--resume", help="auto, required, never, or a checkpoint's or run's path.")
    ] = "never",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Instead of the configuration's.")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option("--warmup-steps", help="Instead of the configuration's.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any key of the file.")
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Train a small copy of the model: to try a run on any machine.")
    ] = False,
    freeze: Annotated[
        list[str] | None, typer.Option("--freeze", metavar="PATTERN", help="Parameters not to train.")
    ] = None,
    save_every: Annotated[
        int, typer.Option("--save-every", help="Steps between checkpoints (0: one at the end).")
    ] = 0,
    keep: Annotated[int, typer.Option("--keep", help="Newest checkpoints that stay.")] = 2,
    eval_every: Annotated[
        int, typer.Option("--eval-every", help="Steps between validation losses (0: one at the end).")
    ] = 0,
    validation: Annotated[
        float, typer.Option("--validation", help="Part of the data kept for validation.")
    ] = 0.01,
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="The text's or source's field.")
    ] = None,
    target_field: Annotated[str | None, typer.Option("--target-field", help="The target's field.")] = None,
    label_field: Annotated[str | None, typer.Option("--label-field", help="The label's field.")] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help='Put before each source, such as "summarize: ".')
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Start of the closing sample text.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")] = "auto",
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="Processes (default: every GPU, else 2 on the CPU).")
    ] = None,
    launcher: Annotated[str, typer.Option("--launcher", help="torchrun, deepspeed or none.")] = "torchrun",
    nodes: Annotated[int, typer.Option("--nodes", help="Machines, with --hostfile.")] = 1,
    hostfile: Annotated[str | None, typer.Option("--hostfile", help="DeepSpeed's hostfile.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Where the ranks meet (default: a free one).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, data order and dropout.")] = 1234,
    workers: Annotated[int, typer.Option("--workers", help="Data-reading processes per rank.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closing report as one object.")] = False,
) -> int:
    """Train a model as a configuration says.

    Runs DeepSpeed's engine on every GPU, or on the CPU with two ranks.  The run's folder gets checkpoints
    that are whole or absent, a line of figures a step, the trained model as a Hugging Face folder, and a
    closing report.  Ctrl-C saves and stops; --resume auto goes on from there with the same losses.

    \b
    Examples:
      trimtab train llama_7b_single_node --from ./llama-7b --data corpus/
      trimtab train llama_70b_multi_node --shrink --data notes.txt --steps 20
      trimtab train bert_base_finetuning --from bert-base-uncased \\
        --data reviews.csv --epochs 3 --set train_batch_size=64
    """
    from trimtab.errors import UsageError, need_packages

    need_packages("training")
    from trimtab.train.predict import prediction
    from trimtab.train.settings import DEVICES, Settings
    from trimtab.train.start import settle_device, settle_ranks, start
    from trimtab.units import parse_count

    if device not in DEVICES:
        raise UsageError(f"--device {device}: it is one of {', '.join(DEVICES)}")
    settings = Settings(
        config=config,
        data=tuple(data),
        run=run or str(Path("runs") / Path(config).stem),
        pretrained=pretrained,
        tokenizer=tokenizer,
        steps=steps,
        epochs=epochs,
        tokens=None if tokens is None else parse_count(tokens),
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        save_every=save_every,
        keep=keep,
        eval_every=eval_every,
        validation=validation,
        text_field=text_field,
        target_field=target_field,
        label_field=label_field,
        prefix=prefix,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        changes=tuple(change or ()),
        shrink=shrink,
        freeze=tuple(freeze or ()),
        device=settle_device(device),
        workers=workers,
        prompt=prompt,
    )
    count = settle_ranks(ranks, device=settings.device, launcher=launcher)
    ended = start(
        settings,
        ranks=count,
        launcher=launcher,
        port=port,
        nodes=nodes,
        hostfile=hostfile,
        prediction=prediction(settings, ranks=count, nodes=nodes),
    )
    if ended.report is None:
        typer.echo(f"{ended.message}\n{_again(settings.run)}", err=True)
    elif as_json:
        import json

        typer.echo(json.dumps(ended.report))
    else:
        from trimtab.train.report import describe

        typer.echo(describe(ended.report))
    return ended.exit_code


def _again(run: str) -> str:
    """The command that continues, from this one's own words."""
    import shlex
    import sys

    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    for place, word in enumerate(words):
        if word == "--resume":
            del words[place : place + 2]
            break
        if word.startswith("--resume="):
            del words[place]
            break
    return f"continue with: trimtab {shlex.join([*words, '--resume', 'auto'])}"
