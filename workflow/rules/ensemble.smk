# On request: the splits' models as one, scored on the test groups that none of them trains on.


rule export_ensemble:
    input:
        unless_current("ensemble", ensemble_needs),
    output:
        layout.further_export_zip("{archive}", layout.ENSEMBLE),
    log:
        layout.log("{archive}", "export_ensemble"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"]
    resources:
        mem_mb=8000,
        runtime=60,
    message:
        "{wildcards.archive}: exporting the ensemble of its splits"
    shell:
        "python -m armarium --log {log:q} export-ensemble {wildcards.archive:q}"


rule publish_ensemble:
    input:
        unless_kept(layout.ensemble_ts("{archive}"), layout.further_export_zip("{archive}", layout.ENSEMBLE)),
    output:
        layout.ensemble_ts("{archive}"),
    log:
        layout.log("{archive}", "publish_ensemble"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} ensemble.ts {output:q} --rule publish_ensemble"


rule evaluate_ensemble:
    input:
        unless_current("ensemble evaluation", ensemble_evaluation_needs),
    output:
        layout.eval_zip("{archive}", layout.OF_ENSEMBLE),
    log:
        layout.log("{archive}", "evaluate_ensemble"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"]
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=240,
    message:
        "{wildcards.archive}: scoring the ensemble of its splits"
    shell:
        "python -m armarium --log {log:q} evaluate-ensemble {wildcards.archive:q}"


rule write_ensemble_metrics:
    input:
        unless_kept(
            layout.eval_metrics_csv("{archive}", layout.OF_ENSEMBLE), layout.eval_zip("{archive}", layout.OF_ENSEMBLE)
        ),
    output:
        layout.eval_metrics_csv("{archive}", layout.OF_ENSEMBLE),
    log:
        layout.log("{archive}", "write_ensemble_metrics"),
    conda:
        "../../envs/data.yaml"
    params:
        of=layout.OF_ENSEMBLE,
    shell:
        'python -m armarium --log {log:q} write eval-metrics {wildcards.archive:q} {params.of} --inputs "$(printf "%s\\n" {input:q})"'


rule write_ensemble_dice:
    input:
        unless_kept(
            layout.eval_dice_tables("{archive}", layout.OF_ENSEMBLE),
            layout.eval_zip("{archive}", layout.OF_ENSEMBLE),
            layout.splits_json("{archive}"),
        ),
    output:
        layout.eval_dice_tables("{archive}", layout.OF_ENSEMBLE),
    log:
        layout.log("{archive}", "write_ensemble_dice"),
    conda:
        "../../envs/data.yaml"
    params:
        of=layout.OF_ENSEMBLE,
    shell:
        'python -m armarium --log {log:q} write eval-dice-tables {wildcards.archive:q} {params.of} --inputs "$(printf "%s\\n" {input:q})"'


rule extract_ensemble_segmentation:
    input:
        unless_kept(
            layout.eval_segmentation("{archive}", "{case}", layout.OF_ENSEMBLE),
            layout.eval_zip("{archive}", layout.OF_ENSEMBLE),
        ),
    output:
        layout.eval_segmentation("{archive}", "{case}", layout.OF_ENSEMBLE),
    log:
        layout.log("{archive}", "extract_ensemble_segmentation_{case}"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} predictions/{wildcards.case}.nii.gz {output:q} --rule extract_ensemble_segmentation"


rule extract_ensemble_probabilities:
    input:
        unless_kept(
            layout.eval_probabilities("{archive}", layout.OF_ENSEMBLE),
            layout.eval_zip("{archive}", layout.OF_ENSEMBLE),
        ),
    output:
        layout.eval_probabilities("{archive}", layout.OF_ENSEMBLE),
    log:
        layout.log("{archive}", "extract_ensemble_probabilities"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} probabilities.tsv {output:q} --rule extract_ensemble_probabilities"


rule extract_ensemble_predictions:
    input:
        unless_kept(
            layout.eval_predictions("{archive}", layout.OF_ENSEMBLE), layout.eval_zip("{archive}", layout.OF_ENSEMBLE)
        ),
    output:
        layout.eval_predictions("{archive}", layout.OF_ENSEMBLE),
    log:
        layout.log("{archive}", "extract_ensemble_predictions"),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} predictions.tsv {output:q} --rule extract_ensemble_predictions"
