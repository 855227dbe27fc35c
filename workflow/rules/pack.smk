# The published model in one file for another client, on request.


rule pack_bundle:
    input:
        source("train"),
        source("publish"),
        unless_kept(packed_products, to_pack, layout.dataset_json("{archive}")),
    output:
        layout.pack("{archive}", "{client}"),
    log:
        layout.log("{archive}", "pack_{client}"),
    wildcard_constraints:
        client=f"{layout.LABEL}|{layout.DEPLOY}",
    conda:
        "../../envs/data.yaml"
    message:
        "{wildcards.archive}: packing the published model for {wildcards.client}"
    shell:
        "python -m armarium --log {log:q} pack {wildcards.archive:q} {wildcards.client}"


rule pack_triton:
    input:
        source("train"),
        source("publish"),
        unless_kept(
            layout.pack("{archive}", layout.TRITON),
            layout.published_ts("{archive}"),
            published_exports,
            layout.dataset_json("{archive}"),
            layout.licence("{archive}"),
        ),
    output:
        layout.pack("{archive}", layout.TRITON),
    log:
        layout.log("{archive}", "pack_triton"),
    conda:
        "../../envs/torch.yaml"
    threads: lambda wildcards: configured(wildcards.archive).settings["threads"]
    resources:
        mem_mb=4000,
        runtime=60,
    message:
        "{wildcards.archive}: packing the published model for Triton"
    shell:
        "python -m armarium --log {log:q} pack {wildcards.archive:q} triton"
