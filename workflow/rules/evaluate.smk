# Test groups by split, one job each; the published model on the cases it may be scored on.


rule test_split:
    input:
        unless_current("evaluation", testing_needs, ("group", "split")),
    output:
        layout.evaluation_zip("{archive}", "{group}", "{split}"),
    log:
        layout.log("{archive}", "test_split_{group}_{split}"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"] * EVALUATION_PROCESSES
    resources:
        gpu=EVALUATION_PROCESSES,
        mem_mb=8000 * EVALUATION_PROCESSES,
        runtime=240,
    message:
        "{wildcards.archive}: testing split {wildcards.split} on group {wildcards.group}"
    shell:
        "python -m armarium --log {log:q} test {wildcards.archive:q} {wildcards.group} {wildcards.split}"


rule write_results:
    input:
        unless_kept(
            [
                layout.result_tables(layout.result_dir("{archive}", "{group}", "{split}", "{checkpoint}")),
                layout.result_computational(layout.result_dir("{archive}", "{group}", "{split}", "{checkpoint}")),
            ],
            layout.evaluation_zip("{archive}", "{group}", "{split}"),
            layout.run_zip("{archive}", "{split}"),
            cut_from=of_evaluation,
        ),
    output:
        layout.result_tables(layout.result_dir("{archive}", "{group}", "{split}", "{checkpoint}")),
        layout.result_computational(layout.result_dir("{archive}", "{group}", "{split}", "{checkpoint}")),
    log:
        layout.log("{archive}", "write_results_{group}_{split}_{checkpoint}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} write-results {wildcards.archive:q} {wildcards.group} {wildcards.split} {wildcards.checkpoint}"


rule evaluate_published:
    input:
        unless_current("published evaluation", published_needs),
    output:
        layout.eval_zip("{archive}"),
    log:
        layout.log("{archive}", "evaluate_published"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"] * EVALUATION_PROCESSES
    resources:
        gpu=EVALUATION_PROCESSES,
        mem_mb=8000 * EVALUATION_PROCESSES,
        runtime=240,
    message:
        "{wildcards.archive}: scoring the published model"
    shell:
        "python -m armarium --log {log:q} evaluate-published {wildcards.archive:q}"


rule evaluate_checkpoint:
    input:
        unless_current("checkpoint evaluation", checkpoint_needs),
    output:
        layout.eval_zip("{archive}", layout.CKPT),
    log:
        layout.log("{archive}", "evaluate_checkpoint"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"]
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=240,
    message:
        "{wildcards.archive}: scoring the published checkpoint"
    shell:
        "python -m armarium --log {log:q} evaluate-checkpoint {wildcards.archive:q}"


# Cut from the evaluation of the TorchScript (eval/), the checkpoint (eval/ckpt/) or the ensemble (eval/ensemble/): ``by`` is
# the folder.


rule write_eval_metrics:
    input:
        unless_kept(layout.eval_metrics_csv("{archive}", "{by}"), layout.eval_zip("{archive}", "{by}")),
    output:
        layout.eval_metrics_csv("{archive}", "{by}"),
    log:
        layout.log("{archive}", "{by}write_eval_metrics"),
    wildcard_constraints:
        by=EVALUATED_BY,
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write eval-metrics {wildcards.archive:q} {wildcards.by} --inputs "$(printf "%s\\n" {input:q})"'


rule write_eval_dice:
    input:
        unless_kept(
            layout.eval_dice_tables("{archive}", "{by}"),
            layout.eval_zip("{archive}", "{by}"),
            layout.splits_json("{archive}"),
        ),
    output:
        layout.eval_dice_tables("{archive}", "{by}"),
    log:
        layout.log("{archive}", "{by}write_eval_dice"),
    wildcard_constraints:
        by=EVALUATED_BY,
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write eval-dice-tables {wildcards.archive:q} {wildcards.by} --inputs "$(printf "%s\\n" {input:q})"'


rule extract_segmentation:
    input:
        unless_kept(layout.eval_segmentation("{archive}", "{case}", "{by}"), layout.eval_zip("{archive}", "{by}")),
    output:
        layout.eval_segmentation("{archive}", "{case}", "{by}"),
    log:
        layout.log("{archive}", "{by}extract_segmentation_{case}"),
    wildcard_constraints:
        by=EVALUATED_BY,
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} predictions/{wildcards.case}.nii.gz {output:q} --rule extract_segmentation"


rule extract_probabilities:
    input:
        unless_kept(layout.eval_probabilities("{archive}", "{by}"), layout.eval_zip("{archive}", "{by}")),
    output:
        layout.eval_probabilities("{archive}", "{by}"),
    log:
        layout.log("{archive}", "{by}extract_probabilities"),
    wildcard_constraints:
        by=EVALUATED_BY,
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} probabilities.tsv {output:q} --rule extract_probabilities"


rule extract_predictions:
    input:
        unless_kept(layout.eval_predictions("{archive}", "{by}"), layout.eval_zip("{archive}", "{by}")),
    output:
        layout.eval_predictions("{archive}", "{by}"),
    log:
        layout.log("{archive}", "{by}extract_predictions"),
    wildcard_constraints:
        by=EVALUATED_BY,
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} predictions.tsv {output:q} --rule extract_predictions"
