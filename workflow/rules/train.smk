# One split, one job, one output; everything below training/split-K is cut from it.


rule check_recipe:
    input:
        source("train"),
        unless_kept(
            [layout.architecture_log("{archive}"), layout.nn_summary("{archive}")], layout.dataset_json("{archive}")
        ),
    output:
        layout.architecture_log("{archive}"),
        layout.nn_summary("{archive}"),
    log:
        layout.log("{archive}", "check_recipe"),
    group:
        DESCRIBED
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=2000,
        runtime=20,
    message:
        "{wildcards.archive}: building every component of the recipe once"
    shell:
        "python -m armarium --log {log:q} check-recipe {wildcards.archive:q}"


rule train_split:
    input:
        unless_current("training", training_needs, ("split",)),
    output:
        layout.run_zip("{archive}", "{split}"),
    log:
        layout.log("{archive}", "train_split_{split}"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"] * processes_for(wildcards.archive)
    resources:
        gpu=lambda wildcards: processes_for(wildcards.archive),
        mem_mb=lambda wildcards: 8000 * processes_for(wildcards.archive),
        runtime=1440,
        slurm_extra=after_what_trains,
    message:
        "{wildcards.archive}: training split {wildcards.split}"
    shell:
        "python -m armarium --log {log:q} train {wildcards.archive:q} {wildcards.split}"


rule select_checkpoint:
    input:
        unless_kept(
            layout.checkpoint_pt(layout.checkpoint_kind_dir("{archive}", "{split}", "{kind}")),
            layout.run_zip("{archive}", "{split}"),
            cut_from=of_checkpoint,
        ),
    output:
        layout.checkpoint_pt(layout.checkpoint_kind_dir("{archive}", "{split}", "{kind}")),
    log:
        layout.log("{archive}", "select_checkpoint_{split}_{kind}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} select {wildcards.archive:q} {wildcards.split} {wildcards.kind} --weights"


rule select_tables:
    input:
        unless_kept(
            layout.checkpoint_tables(layout.checkpoint_kind_dir("{archive}", "{split}", "{kind}")),
            layout.run_zip("{archive}", "{split}"),
            cut_from=of_checkpoint,
        ),
    output:
        layout.checkpoint_tables(layout.checkpoint_kind_dir("{archive}", "{split}", "{kind}")),
    log:
        layout.log("{archive}", "select_tables_{split}_{kind}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} select {wildcards.archive:q} {wildcards.split} {wildcards.kind} --tables"


rule copy_logs:
    input:
        unless_kept(
            [layout.split_logs("{archive}", "{split}"), layout.history_tables("{archive}", "{split}")],
            layout.run_zip("{archive}", "{split}"),
            cut_from=of_run,
        ),
    output:
        layout.split_logs("{archive}", "{split}"),
        layout.history_tables("{archive}", "{split}"),
    log:
        layout.log("{archive}", "copy_logs_{split}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} copy-logs {wildcards.archive:q} {wildcards.split} {output:q}"


rule copy_learning_rates:
    input:
        unless_kept(
            layout.learning_rates("{archive}", "{split}", "{optimizer}"),
            layout.run_zip("{archive}", "{split}"),
            cut_from=of_run,
        ),
    output:
        layout.learning_rates("{archive}", "{split}", "{optimizer}"),
    log:
        layout.log("{archive}", "copy_learning_rates_{split}_{optimizer}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} copy-logs {wildcards.archive:q} {wildcards.split} {output:q}"


rule copy_starting_weights:
    input:
        if_finetuned,
        unless_kept(
            layout.starting_weights("{archive}", "{split}"),
            layout.run_zip("{archive}", "{split}"),
            cut_from=of_run,
        ),
    output:
        layout.starting_weights("{archive}", "{split}"),
    log:
        layout.log("{archive}", "copy_starting_weights_{split}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} copy-logs {wildcards.archive:q} {wildcards.split} {output:q}"
