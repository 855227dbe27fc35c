# What each job needs, and what a complete archive holds.


def synthesized():
    """The datasets that the configuration asks to make: list file -> what to make."""
    from armarium.synthesize import synthesized_files

    found = {}
    for section in config.get("archives", {}).values():
        spec = section["dataset"]["synthesize"]
        if spec:
            folder = os.path.join(config["data_root"], os.path.dirname(section["dataset"]["list"]))
            spec = {**spec, "task": section["dataset"]["task"]}
            found[os.path.normpath(folder)] = (
                spec,
                [os.path.normpath(f"{folder}/{f}") for f in synthesized_files(spec)],
            )
    return found


SYNTHESIZED = synthesized()


def unmade(folder):
    """Whether a dataset is to be made, or made again: not for its files' times, content decides on data."""
    from armarium.synthesize import is_synthesized

    return not told(is_synthesized, folder, SYNTHESIZED[folder][0])


def list_to_be_made(archive, held):
    """The folder of the archive's dataset, if a rule is to make that."""
    if "list" not in held.spec["dataset"]:
        return None
    folder = os.path.normpath(os.path.join(held.data_root, os.path.dirname(held.spec["dataset"]["list"])))
    return folder if folder in SYNTHESIZED and unmade(folder) else None


def made_list(wildcards):
    """The dataset's files as inputs where a rule is to make them; else they are certain to be those of the archive.

    Of an archive that is listed, the list's owner decides what data it is made from.
    """
    archive, held = wildcards.archive, configured(wildcards.archive)
    if folder := list_to_be_made(archive, held):
        return SYNTHESIZED[folder][1]
    if archive not in LISTED and not os.path.exists(layout.cases_tsv(archive)):
        refuse_other_data(archive, held)
    return []


def refuse_other_data(archive, held):
    """Tell, before anything is made, of data that is missing or not what the archive was made from."""
    from armarium.data_record import check_same_data
    from armarium.steps import hash_index

    groups = json_module.loads(held.effective["test"])["groups"]
    if list_to_be_made(archive, held) is None:
        told(check_same_data, archive, held.spec["dataset"], groups, held.data_root, hash_index(CACHE_DIR))


def another_dataset(folder):
    """Input function: a reason to make a dataset again that was made from another specification."""
    listed = SYNTHESIZED[folder][1][0]
    return lambda wildcards: [stamp(folder, "dataset", listed)] if os.path.exists(listed) and unmade(folder) else []


@cache
def environment_files(archive):
    """The files of env/: those that the published training froze, else those that one by this call would.

    So an archive that was trained in conda keeps them wherever it is worked on, and nothing else is asked of it.
    """
    held = configured(archive)
    run = told(standing, held, "training", str(held.spec["publish"]))
    frozen = frozen_names(run.path) if run.current or run.kept else []
    return [layout.environment_file(archive, name) for name in frozen or names_here(USES_CONDA)]


def export_environment(archive):
    """The files of env/ on what exports on request ran in: where an archive's rules run in conda, and once some did."""
    formats = [e for e in further_exports(archive) if e in layout.FORMATS]
    of_training = environment_files(archive)
    if (
        not formats
        or layout.environment_file(archive, f"{layout.OTHER_ENVIRONMENTS[0]}/{layout.ENVIRONMENT[0]}")
        not in of_training
    ):
        return []
    files = layout.environment_files(
        archive, (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT), layout.EXPORT_ENVIRONMENT
    )
    if not USES_CONDA:
        return [f for f in files if os.path.exists(f)]
    export = not all(os.path.exists(layout.further_export_zip(archive, e)) for e in formats)
    return [f for f in files if export or was_made(archive, f)]


def if_recorded(*products):
    """Input function: nothing, once it is certain that an archive is to have these files of env/."""

    def of(wildcards):
        told(refuse_unrecorded, wildcards.archive, list(paths(products, wildcards)))
        return []

    return of


def refuse_unrecorded(archive, asked):
    files = [*environment_files(archive), *export_environment(archive)]
    if strange := [f for f in asked if f not in files]:
        raise UserError(f"{strange[0]}: not of the environments of this archive; it has {', '.join(files)}")


def if_finetuned(wildcards):
    """Input function: nothing, once it is certain that an archive starts from a parent's weights."""
    archive = wildcards.archive
    if configured(archive).start is None:
        path = layout.starting_weights(archive, wildcards.split)
        told(refuse, f"{path}: this archive is not fine-tuned: there is nothing in {layout.parent_dir(archive)}")
    return []


def refuse(message):
    raise UserError(message)


def training_needs(wildcards):
    """What must be there when training starts.

    MAPS's files are among it, so that the archive opens from the first training's start.
    """
    archive, split = wildcards.archive, wildcards.split
    return [
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        layout.architecture_log(archive),
        *environment_files(archive),
        *layout.root_configs(archive),
        layout.training_data_tsv(archive),
        *(f for k in splits_of(archive) for side in layout.SIDES for f in layout.side_data(archive, side, k)),
    ]


def testing_needs(wildcards):
    return [
        layout.run_zip(wildcards.archive, wildcards.split),
        layout.splits_json(wildcards.archive),
        layout.cases_tsv(wildcards.archive),
        *layout.group_data(wildcards.archive, wildcards.group),
    ]


def exporting_needs(wildcards):
    return [layout.run_zip(wildcards.archive, wildcards.split), layout.dataset_json(wildcards.archive)]


def format_needs(wildcards):
    return [published_run(wildcards), layout.dataset_json(wildcards.archive)]


def to_export_format(wildcards):
    """Input function: as for other exports, once it is certain that what the format needs is installed."""
    needed = unless_current("format", format_needs, ("format",))(wildcards)
    if needed and not USES_CONDA:
        told(require_packages, [wildcards.format], f"{wildcards.archive}: export.formats")
    return needed


def ensemble_needs(wildcards):
    told(require_splits, wildcards.archive, splits_of(wildcards.archive))
    return [*all_runs(wildcards), layout.dataset_json(wildcards.archive)]


def ensemble_evaluation_needs(wildcards):
    archive = wildcards.archive
    told(require_splits, archive, splits_of(archive))
    told(require_shared_groups, archive)
    return [layout.ensemble_ts(archive), *all_runs(wildcards), layout.splits_json(archive), layout.cases_tsv(archive)]


def require_shared_groups(archive):
    """Tell of an archive whose ensemble cannot be scored."""
    if not configured(archive).shared_groups:
        raise UserError(
            f"{archive}: no test group that no split trains on, so an ensemble of all splits cannot be scored; "
            "name one in test.groups; models/ensemble.ts itself needs none"
        )


def published_needs(wildcards):
    return [
        layout.published_ts(wildcards.archive),
        published_run(wildcards),
        layout.splits_json(wildcards.archive),
        layout.cases_tsv(wildcards.archive),
    ]


def checkpoint_needs(wildcards):
    return [
        layout.published_model(wildcards.archive),
        published_run(wildcards),
        layout.splits_json(wildcards.archive),
        layout.cases_tsv(wildcards.archive),
    ]


def published_split(wildcards):
    return configured(wildcards.archive).spec["publish"]


def of_run(wildcards):
    """What is cut from a run as a whole."""
    return [("training", (wildcards.split,), None)]


def of_checkpoint(wildcards):
    """What is cut from a run for one checkpoint."""
    return [("training", (wildcards.split,), wildcards.kind.rpartition("/")[2])]


def of_published_run(wildcards):
    return [("training", (str(published_split(wildcards)),), None)]


def of_export(wildcards):
    return [("export", (wildcards.split,), wildcards.kind.rpartition("/")[2])]


def of_published_export(wildcards):
    return [("export", (str(published_split(wildcards)),), configured(wildcards.archive).published_checkpoint)]


def of_evaluation(wildcards):
    """What is cut from an evaluation for one checkpoint, and from the run that was evaluated."""
    group, split = wildcards.group, wildcards.split
    return [("evaluation", (group, split), wildcards.checkpoint), ("training", (split,), wildcards.checkpoint)]


def published_run(wildcards):
    return layout.run_zip(wildcards.archive, published_split(wildcards))


def published_exports(wildcards):
    return layout.exports_zip(wildcards.archive, published_split(wildcards))


ROOT_CONFIGS = {
    "model": [layout.model_json("{archive}")],
    "metrics": [layout.metrics_json("{archive}")],
    "callbacks": [layout.callbacks_json("{archive}"), "select"],
    "optimization": [layout.optimization_json("{archive}")],
}
"""Each file of the MAPS's root, and what it is made from beside the training configuration."""


def all_runs(wildcards):
    return [layout.run_zip(wildcards.archive, k) for k in splits_of(wildcards.archive)]


def all_evaluations(wildcards):
    archive = wildcards.archive
    held = configured(archive)
    return [layout.evaluation_zip(archive, g, k) for g in held.groups for k in held.splits_of(g)]


def split_artifacts(archive, split):
    optimizer = class_name(configured(archive).settings["optimizer"])
    folders = checkpoint_folders(archive, split)
    return [
        layout.run_zip(archive, split),
        layout.exports_zip(archive, split),
        layout.datalist(archive, split),
        *(f for side in layout.SIDES for f in layout.side_data(archive, side, split)),
        *layout.split_logs(archive, split),
        *layout.history_tables(archive, split),
        layout.learning_rates(archive, split, optimizer),
        *(f for d in folders for f in (layout.checkpoint_pt(d), layout.checkpoint_ts(d), *layout.checkpoint_tables(d))),
        *([layout.starting_weights(archive, split)] if configured(archive).start else []),
    ]


def group_artifacts(archive, group):
    held = configured(archive)
    results = [layout.result_dir(archive, group, k, c) for k in held.splits_of(group) for c in held.checkpoints]
    return [
        *layout.group_data(archive, group),
        *(layout.evaluation_zip(archive, group, k) for k in held.splits_of(group)),
        *(f for r in results for f in (*layout.result_tables(r), layout.result_computational(r))),
    ]


MOST_CASES_LISTED = 1000


def predictions(wildcards):
    """Each case's segmentation, up to a thousand cases; all remain in the evaluation's zip."""
    archive = wildcards.archive
    held = configured(archive)
    if not held.spec["predictions"]:
        return []
    if held.task != "segmentation":
        return [layout.eval_table(archive, held.task)]
    if not os.path.exists(layout.splits_json(archive)) and os.path.exists(layout.manifest(archive)):
        # Snakemake does not run a job again for a lost file while one of its inputs waits for a checkpoint.
        return listed_predictions(archive)
    from armarium.steps import published_cases

    checkpoints.split_data.get(archive=archive)
    cases = told(published_cases, archive, held.spec["publish"])
    return [layout.eval_segmentation(archive, c) for c in cases] if len(cases) <= MOST_CASES_LISTED else []


def listed_predictions(archive, of=""):
    """The segmentations that the manifest names."""
    from armarium.manifest import read_manifest

    found = [f"{archive}/{name}" for name in told(read_manifest, archive).files]
    return [f for f in found if f == layout.eval_segmentation(archive, os.path.basename(os.path.dirname(f)), of)]


def checkpoint_scores(archive):
    """What evaluating the published checkpoint gives, in an archive that was once asked for it."""
    held, by = configured(archive), layout.CKPT
    dice = layout.eval_dice_tables(archive, by) if held.task == "segmentation" else []
    scores = [layout.eval_zip(archive, by), layout.eval_metrics_csv(archive, by), *dice]
    if held.task == "segmentation":
        kept = [layout.eval_segmentation(archive, c, by) for c in scored_cases(archive)]
    else:
        kept = [layout.eval_table(archive, held.task, by)]
    kept = [f for f in kept if held.spec["predictions"] and was_made(archive, f)]
    return [*scores, *kept] if kept or any(was_made(archive, f) for f in scores) else []


def compared_shapes(archive):
    """What comparing the published model on inputs of other shapes gave, where that was asked for."""
    found = glob.glob(layout.export_parity(glob.escape(archive), "*"))
    named = [*(f"{archive}/{name}" for name in files_of_manifest(archive)), *workflow.dag_settings.targets]
    of_manifest = [f for f in named if os.path.dirname(f) == os.path.dirname(layout.export_parity(archive, "*"))]
    return sorted({*found, *of_manifest})


def was_made(archive, path):
    """Whether a file that no archive needs is there, was when the manifest was written, or is asked for by this call."""
    asked = path in workflow.dag_settings.targets
    return asked or os.path.exists(path) or in_manifest(archive, path)


@cache
def files_of_manifest(archive):
    from armarium.manifest import read_manifest

    return set(told(read_manifest, archive).files) if os.path.exists(layout.manifest(archive)) else set()


def data_record(archive):
    """What the data was; of an archive that was complete before that was kept it is not asked: its data may be gone."""
    from armarium.manifest import read_manifest

    record, manifest = layout.data_record(archive), layout.manifest(archive)
    if os.path.exists(record) or not os.path.exists(manifest):
        return [record]
    return [record] if os.path.relpath(record, archive) in told(read_manifest, archive).files else []


def further_exports(archive):
    """What was asked for beside TorchScript: by the configuration, or once by name."""
    held = configured(archive)
    asked = {*held.formats, *([layout.ENSEMBLE] if held.spec["ensemble"] else [])}
    return [e for e in (*layout.FORMATS, layout.ENSEMBLE) if e in asked or os.path.exists(further_record(archive, e))]


def further_record(archive, what):
    """The record of the step that made such an export."""
    return layout.sidecar(archive, f"export_{what}")


def further_artifacts(archive):
    """What belongs to an archive for them, but the models of formats, which may not be able to express the network."""
    asked = further_exports(archive)
    found = [f for e in asked for f in (layout.further_export_zip(archive, e), layout.export_report(archive, e))]
    if layout.ENSEMBLE not in asked:
        return found
    held, of = configured(archive), layout.OF_ENSEMBLE
    if not held.shared_groups:
        return [*found, layout.ensemble_ts(archive)]
    dice = layout.eval_dice_tables(archive, of) if held.task == "segmentation" else []
    scored = [layout.eval_zip(archive, of), layout.eval_metrics_csv(archive, of), *dice]
    return [*found, layout.ensemble_ts(archive), *scored]


def further_models(wildcards):
    """The published model in the formats that were asked for and can express it."""
    from armarium.further_exports import could_export

    archive, found = wildcards.archive, []
    for name in (e for e in further_exports(archive) if e in layout.FORMATS):
        zipped, model = layout.further_export_zip(archive, name), layout.published_format(archive, name)
        if not os.path.exists(zipped) and os.path.exists(layout.manifest(archive)):
            # As for predictions; of a format that is new to a finished archive, that it cannot be is told by its own job.
            found += [model] if in_manifest(archive, model) or not in_manifest(archive, zipped) else []
            continue
        checkpoints.export_format.get(archive=archive, format=name)
        found += [model] if told(could_export, archive, name) else []
    return found


def ensemble_of_card(wildcards):
    """What the model card tells of the ensemble, where the archive has one."""
    archive, of = wildcards.archive, layout.ENSEMBLE
    if wildcards.doc != layout.MODEL_CARD or of not in further_exports(archive):
        return []
    scored = [layout.eval_zip(archive, layout.OF_ENSEMBLE)] if configured(archive).shared_groups else []
    return [layout.further_export_zip(archive, of), *scored]


def in_manifest(archive, path):
    return os.path.relpath(path, archive) in files_of_manifest(archive)


def ensemble_predictions(wildcards):
    """What :func:`predictions` is, of the ensemble."""
    archive, of = wildcards.archive, layout.OF_ENSEMBLE
    held = configured(archive)
    if layout.ENSEMBLE not in further_exports(archive) or not held.shared_groups or not held.spec["predictions"]:
        return []
    if held.task != "segmentation":
        return [layout.eval_table(archive, held.task, of)]
    if not os.path.exists(layout.splits_json(archive)) and os.path.exists(layout.manifest(archive)):
        return listed_predictions(archive, of)
    from armarium.further_exports import ensemble_cases

    checkpoints.split_data.get(archive=archive)
    cases = told(ensemble_cases, archive)
    return [layout.eval_segmentation(archive, c, of) for c in cases] if len(cases) <= MOST_CASES_LISTED else []


def artifacts(wildcards):
    """Everything that a complete archive holds, but the manifest."""
    a = wildcards.archive
    held = configured(a)
    dice = layout.eval_dice_tables(a) if held.task == "segmentation" else []
    return [
        layout.cases_tsv(a),
        layout.dataset_json(a),
        *data_record(a),
        layout.splits_json(a),
        *layout.root_configs(a),
        layout.architecture_log(a),
        layout.nn_summary(a),
        layout.summary_log(a),
        *environment_files(a),
        *export_environment(a),
        layout.training_data_tsv(a),
        *(f for k in splits_of(a) for f in split_artifacts(a, k)),
        *(f for g in held.groups for f in group_artifacts(a, g)),
        layout.published_model(a),
        layout.published_final(a),
        layout.published_ts(a),
        layout.published_events(a),
        layout.train_stats(a),
        layout.eval_zip(a),
        layout.eval_metrics_csv(a),
        *dice,
        *further_artifacts(a),
        *checkpoint_scores(a),
        *compared_shapes(a),
        *(layout.command(a, c) for c in layout.COMMANDS),
        layout.log_config(a),
        *(layout.doc(a, d) for d in layout.DOCS),
        layout.licence(a),
        *(layout.bundle_config(a, n) for n in layout.BUNDLE_CONFIGS),
        layout.workflow_copy(a),
        *packs(a),
    ]


def to_pack(wildcards):
    """What a pack for MONAI Label or MONAI Deploy copies."""
    from armarium.packing import packed_files

    return packed_files(wildcards.archive, wildcards.client)


def packed_products(wildcards):
    return [layout.pack(wildcards.archive, wildcards.client)]


def packs(archive):
    """What is asked for: by the configuration, or once by name; then a record of it is there."""
    asked = configured(archive).spec["pack"]
    made = (c for c in layout.PACKS if os.path.exists(layout.sidecar(archive, f"pack_{c}")))
    return [layout.pack(archive, c) for c in layout.PACKS if c in {*asked, *made}]


def configuration(wildcards):
    """The configuration files that the manifest names; DATA_ROOT's is left out, moving data makes nothing again."""
    archive, names = wildcards.archive, ("archive.json", *layout.MMAR_CONFIGS, "splits.json", "origin.json")
    rewritten = configured(archive).rewritten if workflow.dryrun else []
    files = [*(layout.mmar_config(archive, name) for name in names), *parent_files(archive)]
    return [
        stamp(archive, os.path.basename(f), f) if f in rewritten else f
        for f in files
        if f in rewritten or os.path.exists(f)
    ]


def parent_files(archive):
    """What a fine-tuned archive's training starts from, and what is said of it."""
    from armarium.manifest import archive_files

    folder = layout.parent_dir(archive)
    return [f"{folder}/{name}" for name in archive_files(folder)]


NOTICED = {}


def missing_artifacts(wildcards):
    """A reason to run where anything is lost: Snakemake leaves a lost input of a file that exists as it is.

    As first noticed: asked again after a checkpoint, when some of it is back, it is still a reason.
    """
    archive = wildcards.archive
    manifest = layout.manifest(archive)
    if archive not in NOTICED and os.path.exists(manifest):
        # The last ones may have to wait for a checkpoint, which is no reason to overlook what the first ones lack.
        listed = (artifacts, predictions, ensemble_predictions, further_models)
        missing = any(not os.path.exists(f) for files in listed for f in files(wildcards))
        NOTICED[archive] = [stamp(archive, "lost", manifest)] if missing else []
    return NOTICED.get(archive, [])


PLANNED = {}
"""Archives that are planned as a whole, and the state in which each was when that began."""


def unless_settled(files):
    """Input function: what belongs to a complete archive, or nothing where it is known that nothing is to be done for it."""
    return lambda wildcards: [] if is_settled(wildcards.archive) else files(wildcards)


@cache
def is_settled(archive):
    """Whether an earlier call found nothing to do for an archive, of which nothing has changed since."""
    from armarium.settled import state_of, was_settled

    held = configured(archive)
    if not asks_what_is_out_of_date() or held.rewritten or list_to_be_made(archive, held):
        return False
    state = told(state_of, archive, circumstances())
    if told(was_settled, archive, STATE, state):
        return True
    if not PLANNED:
        atexit.register(in_folder, os.getcwd(), note_if_nothing_ran)
    PLANNED[archive] = state
    return False


@cache
def asks_what_is_out_of_date():
    """Whether this call asks for whole archives where they are out of date, and for nothing else."""
    asked, whole = workflow.dag_settings, os.path.basename(layout.manifest(""))
    more = (
        *(asked.forceall, asked.forcetargets, asked.forcerun, asked.batch),
        *(asked.target_jobs, asked.until, asked.omit_from, asked.allowed_rules, asked.trust_io_cache),
    )
    return (
        workflow.is_main_process
        and workflow.executor_plugin is not None
        and not (workflow.touch or interrupted() or any(more))
        and {trigger.name for trigger in asked.rerun_triggers} <= {"MTIME", "PARAMS"}
        and all(os.path.basename(target) in (whole, "all", "archives") for target in asked.targets)
    )


@cache
def circumstances():
    """What beside an archive decides what is to be done for it."""
    from armarium.provenance import code_sha256
    from armarium.steps import workflow_text

    asked, triggers = workflow.dag_settings, sorted(t.name for t in workflow.dag_settings.rerun_triggers)
    found = (SNAKEMAKE_VERSION, workflow_text(), code_sha256(), triggers, asked.max_checksum_file_size, USES_CONDA)
    return hashlib.sha256(repr(found).encode()).hexdigest()


def note_nothing_to_do():
    """Remember the archives that were planned and need nothing; to be called before any job runs."""
    from armarium.settled import note_settled

    busy = {job.wildcards_dict.get("archive") for job in workflow.dag.needrun_jobs()}
    while PLANNED:
        archive, state = PLANNED.popitem()
        if archive not in busy:
            note_settled(archive, STATE, state)


def note_if_nothing_ran():
    """The same at the end of a call that planned all and had no job to run; after a dry run all jobs count as done."""
    if workflow.scheduler is not None and not workflow.dryrun and not len(workflow.dag):
        note_nothing_to_do()
