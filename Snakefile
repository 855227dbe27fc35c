include: "workflow/Snakefile"


rule archives:
    default_target: True
    input:
        rules.all.input,
