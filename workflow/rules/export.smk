# TorchScript of every selected checkpoint; the published model.


rule export_split:
    input:
        unless_current("export", exporting_needs, ("split",)),
    output:
        layout.exports_zip("{archive}", "{split}"),
    log:
        layout.log("{archive}", "export_split_{split}"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"]
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        checkpoints=lambda wildcards: " ".join(sorted(configured(wildcards.archive).exported)),
    message:
        "{wildcards.archive}: exporting split {wildcards.split} to TorchScript"
    shell:
        "python -m armarium --log {log:q} export {wildcards.archive:q} {wildcards.split} {params.checkpoints}"


rule extract_torchscript:
    input:
        unless_kept(
            layout.checkpoint_ts(layout.checkpoint_kind_dir("{archive}", "{split}", "{kind}")),
            layout.exports_zip("{archive}", "{split}"),
            cut_from=of_export,
        ),
    output:
        layout.checkpoint_ts(layout.checkpoint_kind_dir("{archive}", "{split}", "{kind}")),
    log:
        layout.log("{archive}", "extract_torchscript_{split}_{kind}"),
    group:
        CUT
    conda:
        "../../envs/data.yaml"
    params:
        member=lambda wildcards: f"{wildcards.kind.rpartition('/')[2]}.ts",
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} {params.member} {output:q} --rule extract_torchscript"


rule publish_torchscript:
    input:
        source=unless_kept(
            layout.published_ts("{archive}"), published_exports, cut_from=of_published_export, beside=["publish"]
        ),
        publish=source("publish"),
    output:
        layout.published_ts("{archive}"),
    log:
        layout.log("{archive}", "publish_torchscript"),
    group:
        PUBLISHED
    conda:
        "../../envs/data.yaml"
    params:
        member=lambda wildcards: f"{configured(wildcards.archive).published_checkpoint}.ts",
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input.source:q} {params.member} {output:q} --rule publish_torchscript"


rule publish_weights:
    input:
        source=unless_kept(
            layout.published_model("{archive}"), published_run, cut_from=of_published_run, beside=["publish"]
        ),
        publish=source("publish"),
    output:
        layout.published_model("{archive}"),
    log:
        layout.log("{archive}", "publish_weights"),
    group:
        PUBLISHED
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m armarium --log {log:q} publish {wildcards.archive:q} best"


rule publish_final_weights:
    input:
        source=unless_kept(
            layout.published_final("{archive}"), published_run, cut_from=of_published_run, beside=["publish"]
        ),
        publish=source("publish"),
    output:
        layout.published_final("{archive}"),
    log:
        layout.log("{archive}", "publish_final_weights"),
    group:
        PUBLISHED
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m armarium --log {log:q} publish {wildcards.archive:q} final"


rule publish_events:
    input:
        source=unless_kept(
            layout.published_events("{archive}"), published_run, cut_from=of_published_run, beside=["publish"]
        ),
        publish=source("publish"),
    output:
        layout.published_events("{archive}"),
    log:
        layout.log("{archive}", "publish_events"),
    group:
        PUBLISHED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input.source:q} timing/events {output:q} --rule publish_events"


rule publish_train_stats:
    input:
        source=unless_kept(
            layout.train_stats("{archive}"), published_run, cut_from=of_published_run, beside=["publish"]
        ),
        publish=source("publish"),
    output:
        layout.train_stats("{archive}"),
    log:
        layout.log("{archive}", "publish_train_stats"),
    group:
        PUBLISHED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input.source:q} timing/train_stats.json {output:q} --rule publish_train_stats"


checkpoint export_format:
    input:
        to_export_format,
    output:
        layout.further_export_zip("{archive}", "{format}"),
    log:
        layout.log("{archive}", "export_format_{format}"),
    wildcard_constraints:
        format="|".join(layout.FORMATS),
    conda:
        "../../envs/onnx.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"]
    resources:
        mem_mb=8000,
        runtime=60,
    message:
        "{wildcards.archive}: exporting the published model to {wildcards.format}"
    shell:
        "python -m armarium --log {log:q} export-format {wildcards.archive:q} {wildcards.format}"


rule report_export:
    input:
        unless_kept(layout.export_report("{archive}", "{format}"), layout.further_export_zip("{archive}", "{format}")),
    output:
        layout.export_report("{archive}", "{format}"),
    log:
        layout.log("{archive}", "report_export_{format}"),
    wildcard_constraints:
        format="|".join((*layout.FORMATS, layout.ENSEMBLE)),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} extract {wildcards.archive:q} {input:q} report.json {output:q} --rule report_export"


rule publish_format:
    input:
        unless_kept(
            layout.published_format("{archive}", "{format}"),
            layout.further_export_zip("{archive}", "{format}"),
            layout.export_report("{archive}", "{format}"),
        ),
    output:
        layout.published_format("{archive}", "{format}"),
    log:
        layout.log("{archive}", "publish_format_{format}"),
    wildcard_constraints:
        format="|".join(layout.FORMATS),
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} publish-format {wildcards.archive:q} {wildcards.format}"


rule compare_shape:
    input:
        unless_kept(
            layout.export_parity("{archive}", "{shape}"),
            layout.published_ts("{archive}"),
            layout.published_model("{archive}"),
        ),
        source("export"),
    output:
        layout.export_parity("{archive}", "{shape}"),
    log:
        layout.log("{archive}", "compare_shape_{shape}"),
    wildcard_constraints:
        shape=r"[1-9][0-9]*(x[1-9][0-9]*)+",
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    message:
        "{wildcards.archive}: comparing model.ts with model.pt on an input of {wildcards.shape}"
    shell:
        "python -m armarium --log {log:q} compare-shape {wildcards.archive:q} {wildcards.shape}"
