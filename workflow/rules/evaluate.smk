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


rule write_eval_metrics:
    input:
        unless_kept(layout.eval_metrics_csv("{archive}"), layout.eval_zip("{archive}")),
    output:
        layout.eval_metrics_csv("{archive}"),
    log:
        layout.log("{archive}", "write_eval_metrics"),
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write eval-metrics {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule write_eval_dice:
    input:
        unless_kept(layout.eval_dice_tables("{archive}"), layout.eval_zip("{archive}"), layout.splits_json("{archive}")),
    output:
        layout.eval_dice_tables("{archive}"),
    log:
        layout.log("{archive}", "write_eval_dice"),
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write eval-dice-tables {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule extract_segmentation:
    input:
        unless_kept(layout.eval_segmentation("{archive}", "{case}"), layout.eval_zip("{archive}")),
    output:
        layout.eval_segmentation("{archive}", "{case}"),
    log:
        layout.log("{archive}", "extract_segmentation_{case}"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} predictions/{wildcards.case}.nii.gz {output:q} --rule extract_segmentation"


rule extract_probabilities:
    input:
        unless_kept(layout.eval_probabilities("{archive}"), layout.eval_zip("{archive}")),
    output:
        layout.eval_probabilities("{archive}"),
    log:
        layout.log("{archive}", "extract_probabilities"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} probabilities.tsv {output:q} --rule extract_probabilities"


rule extract_predictions:
    input:
        unless_kept(layout.eval_predictions("{archive}"), layout.eval_zip("{archive}")),
    output:
        layout.eval_predictions("{archive}"),
    log:
        layout.log("{archive}", "extract_predictions"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} predictions.tsv {output:q} --rule extract_predictions"
