"""What `make test` leaves to `make test-all`: long tests of lines that shorter ones run too, more cases of others.

``make test`` must stay short enough to be run before every commit: it keeps a case for every property, backbone and
command group, and the tests here are the rest. Chosen by duration (``pytest --durations=0``) and by the lines that no
other test runs (``coverage`` with a context for every test): what `make test` covers is in experiments/LOG.md.
"""

from __future__ import annotations

import re

CASES = {
    (
        "bench/test_gpu_command.py::"
        "test_the_drafter_at_the_papers_sizes_has_the_shapes_and_the_work_that_the_plan_counts"
    ): "4096",
    "cli/test_damage.py::test_damaged_files_of_a_run": r"^\[\]",
    "cli/test_view_command.py::test_the_rounds_of_the_page_are_the_recorded_ones": "0.0",
    "config/test_compose.py::test_every_yaml_composes": "^(?!objective/|target/)",
    "data/test_spool.py::test_training_from_a_file_is_bitwise_that_from_memory_and_resumes": "disk",
    "data/test_benchmarks.py::test_hub_rows_become_templated_prompts": "gsm8k|humaneval|mt_bench",
    "doctor/test_doctor_drafter.py::test_a_drafter_of_another_make": "dflash|domino",
    "doctor/test_doctor_drafter.py::test_a_leak_of_one_position": "split-dflash|dense-domino",
    "doctor/test_examination.py::test_a_published_target_in_either_precision": "domino-bf16",
    "engines/test_client.py::test_a_server_says_when_to_ask_again": "0",
    "engines/test_faults.py::test_a_drafter_of_any_kind_has_its_faults_or_says_that_it_cannot": "medusa",
    "engines/test_guarded_server.py::test_nothing_outlives_the_starter": "15-stubborn",
    "engines/test_referee.py::test_a_planted_fault_is_named": "causal",
    "engines/test_referee.py::test_a_server_that_fails_loses_nothing": "dies",
    "evaluation/test_batching.py::test_a_batch_gives_every_request_what_it_gets_alone": "1.0",
    "evaluation/test_batching.py::test_windows_and_padding_of_every_family": "mistral",
    "evaluation/test_decode.py::test_a_drafter_that_is_not_sure_proposes_less_and_replay_follows": "1.0",
    "evaluation/test_decode.py::test_live_output_at_temperature_zero_is_the_targets_greedy_output": "7",
    "evaluation/test_decode.py::test_an_oracle_with_errors_leaves_exactly_the_rounds_its_errors_say": "0.0|by position",
    "evaluation/test_decode.py::test_live_rounds_are_replay_rounds_for_a_fitted_drafter": "0.0",
    "evaluation/test_decode.py::test_live_rounds_are_replay_rounds_for_an_untrained_drafter": "changes3",
    "evaluation/test_decode.py::test_live_rounds_are_replay_rounds_for_other_drafters": "domino-0.0",
    "evaluation/test_decode.py::test_live_rounds_are_replay_rounds_when_turns_end": "0.0",
    "evaluation/test_decode.py::test_the_end_of_turn_inside_an_accepted_block_ends_the_completion": "1.0",
    "evaluation/test_decode.py::test_trajectories_are_the_targets_own_tokens_one_at_a_time": "1.0",
    "evaluation/test_shared.py::test_two_ranks_measure_what_one_does": "replay",
    "models/test_families.py::test_decoding_is_lossless_and_replay_equals_it": (
        "(gemma2, soft-capped|mistral, window)-1.0|qwen3_moe-0.0"
    ),
    "models/test_hub.py::test_a_published_target_is_trained_on_and_measured": "llama",
    "models/test_real_targets.py": "qwen3_8b|llama3_2_1b|gemma3_4b|gpt_oss_20b",
    "objectives/test_head.py::test_chunked_and_pruned_equal_the_naive_loss_and_gradient": "three blocks",
    "runtime/test_ranks.py::test_sharded_layers_give_the_numbers_of_one_rank": "target-",
    "runtime/test_ranks.py::test_two_ranks_give_the_losses_of_one": "objective=dspark",
    "test_readme.py::test_readme_commands_run": (
        "train objective=auf backbone|eval --benchmarks all|doctor]|table table2|ls|show|objectives|dry-run"
    ),
    "training/test_drafter.py::test_eight_micro_batches_equal_one_batch": (
        "blocks-auf]|sequence-decay|domino-b_auf-|dspark-"
    ),
    "training/test_drafter.py::test_every_objective_gives_a_finite_loss_and_a_gradient": "dflash|f_auf|s_auf",
    "training/test_drafter.py::test_golden_twenty_steps": "dflash-auf]|domino-b_auf]|dspark-dspark_confidence",
    "training/test_drafter.py::test_interrupted_drafter_resumes_bit_for_bit": "domino-b_auf",
    "training/test_features.py::test_what_is_kept_is_what_is_computed_online": "disk",
    "training/test_kill.py::test_a_kill_at_the_worst_moments_changes_nothing": "half-of-a",
}
"""By test, or by file: the cases that stay, as a pattern of their ids."""

WHOLE = (
    "bench/test_bench_command.py::test_a_process_is_ended_with_all_that_it_started",
    "cli/test_cli.py::test_aliases_and_hydras_own_options_work_on_the_command_line",
    "cli/test_cli.py::test_cross_check_and_every_start_are_printed",
    "cli/test_cli.py::test_decode_mode_gives_the_rounds_of_replay",
    "cli/test_cli.py::test_drafters_kept_on_the_way_can_be_measured",
    "cli/test_cli.py::test_figures_and_report_follow_the_last_table",
    "cli/test_cli.py::test_tau_is_measured_while_training_and_changes_nothing",
    "cli/test_damage.py::test_a_damaged_run_that_is_passed_over_is_said",
    "cli/test_damage.py::test_a_signal_while_measuring_is_one_line",
    "cli/test_damage.py::test_force_moves_the_old_run_aside",
    "cli/test_damage.py::test_one_process_at_a_time_trains_a_run",
    "cli/test_damage.py::test_other_prompts_under_the_same_settings_overwrite_nothing",
    "cli/test_view_command.py::test_a_real_page_fits_a_phone",
    "cli/test_view_command.py::test_drafters_of_two_block_sizes_walk_the_same_answers",
    "data/test_offline.py::test_ten_thousand_distinct_training_prompts_of_each_family",
    "data/test_spool.py::test_memory_does_not_grow_with_the_file",
    "engines/test_engine_benchmark.py::test_model_runner_v2_gets_the_interpreter_in_a_folder_of_its_own",
    "engines/test_engine_benchmark.py::test_the_plugin_is_installed_once_and_found_by_its_entry_point",
    "engines/test_referee.py::test_a_drafter_swapped_in_the_middle_costs_only_this_calls_answers",
    "engines/test_referee.py::test_a_fault_is_named_from_sampled_answers_too",
    "engines/test_referee.py::test_a_fault_that_is_not_known_is_not_named",
    "engines/test_referee.py::test_an_answer_that_differs_is_shown_without_rounds",
    "engines/test_referee.py::test_another_rendering_is_named",
    "engines/test_referee.py::test_another_temperature_than_asked_for_is_found",
    "engines/test_referee.py::test_counters_alone_are_compared_as_sums",
    "engines/test_referee.py::test_rounds_that_a_server_tells_are_shown",
    "engines/test_referee.py::test_the_pages_show_the_first_difference",
    "engines/test_serving.py::test_ctrl_c_keeps_what_was_answered",
    "evaluation/test_batching.py::test_a_row_that_waits_for_its_replacement_stays_within_the_context",
    "evaluation/test_decode.py::test_traces_do_not_depend_on_batching_or_order",
    "evaluation/test_decode.py::test_batching_and_the_order_of_prompts_change_no_trajectory",
    "evaluation/test_shared.py::test_what_fits_no_rank_is_said_by_all",
    "evaluation/test_statistics.py::test_the_minimum_detectable_difference_is_found_four_times_in_five",
    "interchange/test_exchange.py::test_an_imported_run_is_fine_tuned_under_a_name_of_its_own",
    "objectives/test_references.py::test_the_commands_of_the_page_give_losses",
    "reporting/test_figures.py::test_drafters_on_the_way_are_compared_on_the_same_prompts_only",
    "reporting/test_figures.py::test_figures_follow_the_numbers",
    "reporting/test_figures.py::test_the_same_records_draw_the_same_bytes",
    "reporting/test_untrusted.py::test_the_report_with_its_drawings",
    "runtime/test_ranks.py::test_a_sharded_run_is_continued_whole_and_the_other_way_round",
    "runtime/test_ranks.py::test_another_number_of_ranks_continues",
    "runtime/test_sharding.py::test_a_session_with_both_sharded_trains_the_same_drafter_and_refuses_to_measure",
    "store/test_records.py::test_committed_records_are_written_as_they_were_read",
    "study/test_baselines.py::test_render_shows_prompt_lookup_beside_the_drafters_of_other_tables",
    "study/test_executors.py::test_a_launcher_gets_the_settings_of_every_condition",
    "study/test_executors.py::test_a_launcher_gets_the_name_and_title_of_a_variant",
    "study/test_executors.py::test_jobs_of_a_seed_are_trained_in_one_pass_and_a_failure_is_said_once",
    "study/test_executors.py::test_a_stopped_table_tells_its_workers_to_save",
    "study/test_executors.py::test_a_sweep_runs_in_processes_of_the_local_launcher",
    "study/test_study.py::test_a_comparison_is_published_by_condition_and_quoted_on_the_front_page",
    "study/test_study.py::test_a_failed_cell_leaves_the_others_and_is_tried_again",
    "study/test_study.py::test_a_record_is_never_published_twice_with_other_content",
    "study/test_study.py::test_publish_copies_the_records_and_renders",
    "study/test_study.py::test_render_writes_pages_and_readme_quotes_and_a_second_call_changes_nothing",
    "test_docs.py::test_a_backbone_of_ones_own_passes_the_doctor_trains_and_is_measured",
    "test_docs.py::test_a_loss_of_ones_own_trains_and_is_measured",
    "test_docs.py::test_a_target_of_ones_own_passes_the_doctor_and_trains_a_drafter",
    "test_wheel.py::test_wheel_holds_conf_and_experiments_and_works_in_an_empty_directory",
    "training/test_drafter.py::test_both_branches_are_in_the_log",
    "training/test_drafter.py::test_drafters_trained_together_end_as_they_would_alone",
    "training/test_drafter.py::test_features_kept_for_the_next_drafter_change_nothing",
    "training/test_drafter.py::test_training_lowers_the_loss_and_the_target_stays_frozen",
    "training/test_kill.py::test_kills_at_random_moments_change_nothing",
    "training/test_tracking.py::test_offline_run_holds_the_log_under_the_runs_name",
)


def is_slow(node_id: str) -> bool:
    """Whether `make test` leaves out the test with this id, relative to tests/."""
    name, bracket, case = node_id.partition("[")
    if name in WHOLE:
        return True
    kept = CASES.get(name, CASES.get(name.partition("::")[0]))
    return bool(kept and bracket) and re.search(kept, case) is None
