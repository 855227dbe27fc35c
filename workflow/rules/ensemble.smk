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
    group:
        PUBLISHED
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
