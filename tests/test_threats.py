"""What attackers, networks and outages may do, and the tests that do it, most of them to a running server.

Add the tests of a new defence here: if one is renamed or deleted later, this file's tests name the threat.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

HANDSHAKE = {
    "a foreign page opens a WebSocket with its visitor's cookies": [
        "test_handshake.py::test_foreign_origin_is_refused_before_any_decorator_or_view_runs",
        "test_handshake.py::test_two_origins_are_refused",
        "test_handshake.py::test_allowed_origin_may_connect",
        "test_origin.py::test_origin_is_refused",
        "test_stock_worker.py::test_foreign_origin_is_refused_before_the_view_runs",
    ],
    "a request for another host, or a name that was bound to this address": [
        "test_handshake.py::test_wrong_host_is_refused_before_the_view_runs",
        "test_threats_handshake.py::test_page_whose_name_was_bound_to_this_address_is_refused",
    ],
    "an upgrade that middleware, login or the urlconf would have refused": [
        "test_handshake.py::test_refusal_is_an_http_response_that_passes_all_middleware",
        "test_handshake.py::test_view_that_requires_a_login_accepts_a_logged_in_user",
        "test_application.py::test_answer_of_a_middleware_in_place_of_the_101_reaches_the_client",
    ],
    "a handshake with a wrong key, version, method or HTTP version": [
        "test_handshake.py::test_malformed_handshake_is_refused_and_the_connection_closed",
        "test_threats_handshake.py::test_no_garbled_handshake_causes_an_error_in_the_server",
        "test_threats_handshake.py::test_malformed_requests_are_refused",
        "test_application.py::test_plain_request_is_told_to_upgrade",
    ],
    "headers smuggled into a request or an answer": [
        "test_threats_handshake.py::test_nothing_but_a_line_break_ends_a_line",
        "test_threats_handshake.py::test_no_header_of_the_answer_repeats_what_was_sent",
        "test_application.py::test_subprotocol_of_the_view_is_chosen",
    ],
    "a head that is too large, or has no end": [
        "test_worker.py::test_too_large_request_head_is_refused",
        "test_threats_handshake.py::test_endless_head_is_refused_and_not_kept",
        "test_threats_handshake.py::test_head_that_is_too_large_to_keep_is_refused",
        "test_memory.py::test_idle_client_keeps_little_of_a_large_head",
    ],
    "a head, a TLS handshake or a PROXY line that comes slowly or never": [
        "test_admission.py::test_head_that_does_not_come_in_time_is_answered_with_408",
        "test_admission.py::test_one_deadline_holds_for_a_head_that_comes_byte_by_byte",
        "test_admission.py::test_many_slow_heads_neither_disturb_others_nor_leave_anything_behind",
        "test_admission.py::test_deadline_covers_the_tls_handshake",
        "test_admission.py::test_deadline_covers_the_proxy_line",
    ],
    "a body for a page that comes slowly or never": [
        "test_bodies.py::test_requests_whose_bodies_never_come_give_up_their_places",
        "test_bodies.py::test_body_that_comes_byte_by_byte_is_given_up",
        "test_bodies.py::test_slow_but_steady_upload_is_read_to_its_end",
    ],
    "a header on which a regular expression works for years": [
        "test_threats_handshake.py::test_long_value_is_parsed_at_once",
    ],
    "all limits reached at once, by one client or by many": [
        "test_memory.py::test_client_holds_no_more_than_is_documented",
        "test_memory.py::test_two_hundred_clients_hold_no_more_than_is_documented",
    ],
    "a view that never decides": [
        "test_handshake.py::test_view_that_neither_accepts_nor_answers_is_ended",
    ],
    "a second request hidden behind a handshake": [
        "test_handshake.py::test_malformed_handshake_is_refused_and_the_connection_closed",
        "test_handshake.py::test_refusal_is_an_http_response_that_passes_all_middleware",
        "test_threats_handshake.py::test_malformed_requests_are_refused",
        "test_worker.py::test_upgrade_follows_ordinary_requests_on_one_connection",
    ],
    "frames in the segment of the handshake": [
        "test_handshake.py::test_messages_in_the_segment_of_the_handshake_are_answered_at_once",
        "test_handshake.py::test_half_a_message_in_the_segment_of_the_handshake_is_completed_later",
        "test_handshake.py::test_ping_in_the_segment_of_the_handshake_is_answered",
        "test_worker.py::test_messages_in_one_segment_and_in_that_of_the_handshake_pass_over_tls",
    ],
    "headers in which a client claims to be a proxy": [
        "test_nginx.py::test_client_host_and_scheme_are_passed_on_but_not_what_the_client_claims",
        "test_transports.py::test_only_trusted_proxies_are_believed",
        "test_threats_handshake.py::test_claims_of_a_client_that_is_not_a_trusted_proxy_count_for_nothing",
        "test_threats_handshake.py::test_page_names_no_address_that_a_client_made_up",
        "test_origin.py::test_the_scheme_is_taken_from_a_trusted_proxy",
        "test_addresses.py::test_the_tag_never_reflects_an_unknown_host",
    ],
    "an ordinary page asked for by way of the WebSocket server": [
        "test_handshake.py::test_refusal_is_an_http_response_that_passes_all_middleware",
        "test_application.py::test_plain_request_is_told_to_upgrade",
        "test_nginx.py::test_internal_prefix_is_not_found_from_outside",
    ],
}

FRAMES = {
    "a huge declared length": [
        "test_application.py::test_message_larger_than_the_setting_is_refused_with_1009",
        "test_application.py::test_message_larger_than_the_view_allows_is_refused_with_1009",
        "test_threats_frames.py::test_broken_frame_ends_the_connection_at_once_with_its_code",
        "test_threats_frames.py::test_declared_length_takes_no_memory",
    ],
    "fragments without end, and messages that are never finished": [
        "test_threats_frames.py::test_message_of_endless_fragments_is_refused",
        "test_threats_frames.py::test_unfinished_messages_take_only_the_memory_of_what_has_arrived",
        "test_connection.py::test_message_that_never_ends_is_closed_with_1008",
        "test_connection.py::test_slow_but_steady_upload_is_received",
    ],
    "messages faster than a view allows": [
        "test_rates.py::test_reading_stops_while_a_message_waits",
        "test_rates.py::test_waiting_takes_no_time_of_the_process",
        "test_rates.py::test_client_that_has_gone_is_noticed_although_it_is_not_read",
        "test_rates.py::test_client_that_only_listens_is_closed_if_it_sends_too_much",
    ],
    "frames that are not masked, reserved bits and opcodes, control frames of any kind, fragments in any order": [
        "test_threats_frames.py::test_broken_frame_ends_the_connection_at_once_with_its_code",
        "test_stock_worker.py::test_protocol_errors_are_judged_by_our_engine",
    ],
    "text that is not UTF-8, or comes in so many pieces that validating it takes minutes": [
        "test_threats_frames.py::test_broken_frame_ends_the_connection_at_once_with_its_code",
        "test_threats_frames.py::test_text_in_small_pieces_is_validated_once",
    ],
    "close frames with wrong codes, with data behind them, or without an answer": [
        "test_threats_frames.py::test_broken_frame_ends_the_connection_at_once_with_its_code",
        "test_threats_frames.py::test_close_frame_is_answered_once_and_nothing_after_it_counts",
        "test_threats_frames.py::test_client_that_never_answers_a_close_is_disconnected",
    ],
    "JSON that is nested too deeply, is not an object, or is not JSON at all; channels that a client names": [
        "test_websocket.py::test_unusable_json_is_an_error_of_the_message",
        "test_docs.py::test_form_withstands_any_input",
        "test_docs.py::test_items_that_do_not_fit_into_a_session_are_refused",
    ],
    "binary data where text is awaited, and empty messages": [
        "test_worker.py::test_echo_keeps_text_and_binary_and_the_empty_message",
        "test_websocket.py::test_messages_keep_their_types_and_the_end_is_none",
    ],
    "two messages in one segment, for a view with select()": [
        "test_handshake.py::test_two_messages_in_one_segment_are_both_answered_at_once",
        "test_worker.py::test_select_sees_messages_that_the_tls_layer_holds",
    ],
    "half a frame, and then silence": [
        "test_threats_frames.py::test_member_with_half_a_frame_gets_published_messages_like_the_others",
    ],
    "a flood of pings or pongs": [
        "test_threats_frames.py::test_flood_of_empty_control_frames_disturbs_nobody",
        "test_threats_frames.py::test_many_floods_of_control_frames_disturb_nobody",
        "test_threats_frames.py::test_pongs_for_a_client_that_does_not_read_do_not_pile_up",
    ],
    "a flood of messages for a view that does not receive": [
        "test_threats_frames.py::test_view_that_does_not_receive_keeps_an_inbox_and_no_more",
        "test_application.py::test_messages_for_a_busy_view_wait_for_it",
    ],
    "compressed messages that inflate to much more, or were not agreed on": [
        "test_compression.py::test_client_that_breaks_the_rules_is_disconnected",
        "test_compression.py::test_bombs_for_a_view_that_does_not_receive_cannot_keep_the_server_busy",
        "test_threats_frames.py::test_message_that_would_inflate_beyond_the_limit_is_refused_in_time",
        "test_threats_frames.py::test_messages_that_inflate_to_the_limit_disturb_nobody",
        "test_threats_frames.py::test_many_clients_whose_messages_inflate_to_the_limit_disturb_nobody",
        "test_threats_frames.py::test_idle_clients_keep_nothing_of_compression",
    ],
    "messages that are slow to compress when a view sends them on": [
        "test_flood_compressed.py::test_an_idle_client_is_answered_at_once_while_others_send_data_slow_to_compress",
        "test_compression.py::test_compression_takes_a_share_of_the_time",
        "test_compression.py::test_messages_leave_uncompressed_when_there_is_no_time",
        "test_compression.py::test_equal_messages_of_several_views_are_compressed_once_for_each_window",
    ],
    "several greenlets that write to one client": [
        "test_connection.py::test_frames_of_many_senders_never_mix",
        "test_threats_frames.py::test_frames_of_several_writers_to_one_client_never_mix",
    ],
}

CLIENTS = {
    "a client that vanishes without a word": [
        "test_worker.py::test_silent_client_gets_a_ping_and_is_closed_with_1011",
        "test_application.py::test_finally_of_the_view_runs_when_the_client_vanishes",
        "test_threats_leaks.py::test_clients_that_vanished_leave_nothing",
    ],
    "a client that reads slowly or not at all": [
        "test_worker.py::test_listener_that_does_not_read_is_closed_with_1013_and_holds_up_nobody",
        "test_worker.py::test_view_is_told_when_its_client_does_not_read",
        "test_slow_readers.py::test_one_stuck_client_among_five_hundred_delays_nobody_and_its_messages_do_not_pile_up",
        "test_threats_outages.py::test_slow_readers_take_no_more_than_an_outbox_each",
        "test_admission.py::test_clients_that_do_not_read_the_answers_give_up_their_places",
    ],
    "a connection that ends at any moment, in any way": [
        "test_closing.py::test_the_client_ends_after_any_byte",
        "test_handshake.py::test_client_that_leaves_during_the_handshake_leaves_nothing",
        "test_threats_leaks.py::test_connections_that_end_in_any_way_leave_nothing",
        "test_threats_leaks.py::test_greenlets_of_a_view_that_wait_for_a_channel_end_with_its_client",
        "test_threats_leaks.py::test_request_is_freed_with_its_conversation_without_the_collector",
    ],
    "descriptors that are at their end or not read, and wake the worker all the time": [
        "test_load.py::test_worker_does_nothing_while_its_clients_are_idle",
        "test_threats_outages.py::test_worker_does_nothing_for_clients_that_are_gone_or_not_read",
    ],
    "memory that grows with past connections, or that idle ones take": [
        "test_load.py::test_connections_that_come_and_go_leave_nothing",
        "test_threats_leaks.py::test_names_and_values_that_a_client_makes_up_leave_with_it",
        "test_load.py::test_one_worker_serves_two_thousand_clients_with_the_settings_of_the_deployment",
    ],
    "more clients than the process has room or descriptors for": [
        "test_admission.py::test_client_beyond_the_limit_is_refused_before_its_view_runs",
        "test_admission.py::test_limit_of_clients_follows_from_the_limit_of_open_files",
        "test_admission.py::test_worker_out_of_descriptors_neither_ends_nor_spins",
        "test_admission.py::test_accepting_is_tried_again_after_the_system_had_no_room",
        "test_pubsub.py::test_a_process_without_free_descriptors_can_end_a_connection",
        "test_admission.py::test_client_is_refused_at_once_while_no_request_finishes",
    ],
    "all connections taken by one address": [
        "test_nginx.py::test_one_address_gets_no_more_websockets_than_the_limit_allows",
    ],
    "all connections taken by one user": [
        "test_user_limit.py::test_user_has_so_many_connections_and_no_more",
        "test_user_limit.py::test_however_many_come_at_once_no_more_than_the_limit_are_let_in",
        "test_user_limit.py::test_place_is_free_when_the_connection_has_ended",
    ],
    "all clients that come back at once after a restart": [
        "test_browser.py::test_page_connects_again_when_the_server_is_back",
        "test_rolling.py::test_reload_and_new_master_lose_no_client",
        "test_rolling.py::test_workers_that_have_served_their_requests_lose_no_client",
    ],
}

OUTAGES = {
    "Redis that is not there, goes away, is restarted or hangs": [
        "test_redis.py::test_chat_without_redis_is_refused_and_the_log_names_the_remedy",
        "test_redis.py::test_restart_of_redis_is_noticed_by_everybody_and_messages_flow_again",
        "test_redis.py::test_redis_that_hangs_is_noticed",
        "test_pubsub.py::test_everybody_is_subscribed_within_ten_seconds_of_the_return_of_redis",
        "test_threats_outages.py::test_redis_that_hangs_does_not_delay_clients_that_do_not_need_it",
    ],
    "a master that is replaced while clients are subscribed, and slots that move": [
        "test_redis_topologies.py::test_a_master_that_is_killed_is_replaced",
        "test_redis_topologies.py::test_a_master_that_hangs_is_replaced",
        "test_redis_topologies.py::test_clients_follow_the_master",
        "test_redis_topologies.py::test_clients_follow_their_channels",
    ],
    "a subscription that Redis ends": [
        "test_redis.py::test_killed_subscription_is_noticed",
        "test_threats_outages.py::test_subscription_that_redis_ended_because_it_was_not_read_is_noticed",
    ],
    "a Redis that no longer answers, although its connection is still open": [
        "test_pubsub.py::test_a_frozen_connection_is_noticed",
        "test_pubsub.py::test_a_redis_that_takes_over_the_address_is_used",
    ],
    "a flood of any kind, from one client or from many": [
        "test_flood.py::test_an_idle_client_is_answered_at_once_while_others_flood_the_worker",
        "test_turns.py::test_postponed_calls_run_in_turns_of_bounded_time",
        "test_turns.py::test_many_greenlets_with_much_to_do_take_turns",
    ],
    "a flood of messages through Redis": [
        "test_flood.py::test_an_idle_client_is_answered_at_once_while_others_flood_the_worker",
        "test_turns.py::test_a_redis_that_always_has_more_lets_others_run",
        "test_turns.py::test_messages_of_many_channels_that_came_together_let_others_run",
    ],
    "a message that is published before the subscription is in force": [
        "test_threats_outages.py::test_messages_published_once_the_client_is_accepted_reach_it",
        "test_pubsub.py::test_a_subscription_is_in_force_when_subscribe_returns",
    ],
    "as many connections to Redis as clients, or more than it takes": [
        "test_redis.py::test_worker_subscribes_to_a_channel_once_and_leaves_it_with_the_last_member",
        "test_threats_outages.py::test_redis_without_free_connections_is_reported_and_used_again_later",
    ],
    "messages of other programs that are neither text nor binary, or larger than clients can take": [
        "test_redis.py::test_payload_that_is_neither_text_nor_binary_is_dropped_and_logged",
        "test_threats_outages.py::test_message_that_no_client_could_take_is_refused_by_publish",
    ],
    "markup in a chat's messages": [
        "test_browser.py::test_markup_is_shown_as_text",
    ],
}

PROCESS = {
    "a database that is restarted, or ends its connections": [
        "test_databases.py::test_a_restart_of_postgresql_does_not_end_views_that_wait",
        "test_databases.py::test_connection_that_the_server_has_dropped_is_replaced_without_an_error",
        "test_logins.py::test_database_failure_disconnects_nobody",
    ],
    "a clock that jumps, and time in which the process stood still": [
        "test_clock.py::test_a_jump_of_the_time_of_day_ends_nothing",
        "test_clock.py::test_sessions_expire_by_the_time_of_day",
        "test_clock.py::test_client_that_answered_while_the_process_was_stopped_stays",
        "test_clock.py::test_slow_reader_is_not_blamed_for_time_in_which_the_process_stood_still",
        "test_sweep.py::test_time_in_which_the_process_stood_still_does_not_count",
    ],
    "database connections and transactions that are held as long as a client stays": [
        "test_django.py::test_no_database_connection_is_held_while_a_view_waits",
        "test_django.py::test_no_database_connection_is_held_after_a_conversation",
        "test_django.py::test_conversation_is_not_in_a_transaction",
        "test_databases.py::test_five_hundred_idle_clients_that_have_used_the_orm_hold_no_connection",
        "test_databases.py::test_conn_max_age_keeps_no_connection_for_a_conversation",
        "test_application.py::test_request_is_over_for_django_when_the_conversation_begins",
    ],
    "a conversation that goes on after its user has logged out": [
        "test_logins.py::test_conversations_end_with_their_login",
        "test_logins.py::test_conversations_end_with_logout_and_expiry",
        "test_logins.py::test_disconnect_reaches_a_user_in_every_process",
        "test_logins.py::test_login_that_cannot_be_checked_does_not_affect_the_others",
        "test_logins.py::test_login_is_watched_from_the_first_use_of_the_user",
        "test_logins.py::test_user_without_a_session_is_disconnected",
        "test_tokens.py::test_wrong_token_is_refused",
        "test_tokens.py::test_silence_or_anything_else_than_a_token_in_the_first_message_is_refused",
        "test_tokens.py::test_websocket_ends_when_its_token_expires",
        "test_tokens.py::test_websocket_ends_when_the_user_of_its_token_may_not_log_in",
        "test_tokens.py::test_user_of_a_token_can_be_disconnected",
        "test_tokens.py::test_no_token_is_in_the_log",
        "test_logins.py::test_logins_of_tenants_are_kept_apart",
        "test_logins.py::test_users_of_tenants_are_kept_apart_without_a_session",
    ],
    "orders to disconnect that are malformed, or that somebody has made up or recorded": [
        "test_logins.py::test_malformed_order_harms_nobody",
        "test_logins.py::test_invalid_order_is_refused_before_it_is_sent",
        "test_logins.py::test_channels_reserved_for_the_package_are_refused",
        "test_logins.py::test_order_counts_once_and_only_if_it_is_new_and_of_this_project",
        "test_logins.py::test_order_does_not_count_for_a_process_that_was_not_there",
        "test_logins.py::test_orders_are_read_with_a_former_key",
        "test_logins.py::test_answers_that_no_process_has_signed_are_not_counted",
    ],
    "somebody who sees or disconnects the clients of others without the permission, or hides behind a hostile name": [
        "test_admin.py::test_only_staff_with_the_permission_see_the_page_and_its_websocket",
        "test_admin.py::test_websocket_of_the_page_ends_with_the_login_and_the_permission",
        "test_admin.py::test_staff_disconnect_after_a_confirmation_which_the_log_records",
        "test_admin.py::test_form_that_does_not_say_whom_disconnects_nobody",
        "test_admin.py::test_page_shows_the_list_and_disconnects",
        "test_monitoring.py::test_hostile_texts_arrive_as_they_are_and_long_ones_are_cut",
        "test_monitoring.py::test_command_lists_connections",
        "test_monitoring.py::test_pattern_takes_no_longer_for_a_hostile_path",
    ],
    "a restart that tells clients nothing, or waits for dead or stuck ones": [
        "test_worker.py::test_clients_are_told_of_a_restart",
        "test_worker.py::test_stuck_view_does_not_hold_up_the_process_and_nobody_new_is_accepted",
        "test_worker.py::test_reload_closes_with_1012_and_goes_on_with_new_workers",
        "test_worker.py::test_worker_that_has_served_its_max_requests_closes_with_1012",
    ],
    "two gunicorns that meet on one control socket": [
        "test_transports.py::test_gunicorns_with_the_deployed_configuration_do_not_share_a_control_socket",
    ],
    "lines forged in the log, secrets in it, or a disk that it fills": [
        "test_log.py::test_client_cannot_begin_a_line_of_its_own",
        "test_log.py::test_refused_handshake_is_logged_on_one_line",
        "test_log.py::test_attack_does_not_fill_the_disk",
    ],
    "a view that keeps the process busy": [
        "test_threats_outages.py::test_worker_that_a_view_keeps_busy_is_replaced",
    ],
    "a project that is loaded before the standard library is patched": [
        "test_application.py::test_preloaded_application_is_refused_with_a_clear_sentence",
        "test_application.py::test_django_imported_before_gevent_has_patched_is_refused_with_a_remedy",
    ],
    "a child process, forked by a view, that reads, answers or closes its parent's connections": [
        "test_forking.py::test_clients_of_the_worker_do_not_notice_a_child",
        "test_forking.py::test_child_ends_when_it_is_terminated",
    ],
    "conversations that wait for the garbage collector when their clients have left": [
        "test_threats_leaks.py::test_view_that_ends_by_an_exception_is_freed_without_the_collector",
        "test_threats_leaks.py::test_request_is_freed_with_its_conversation_without_the_collector",
    ],
    "a greenlet that waits for ever for a handshake that was refused": [
        "test_application.py::test_greenlet_that_accepts_after_the_view_has_answered_gets_an_error_at_once",
    ],
    "a timeout that stops all timers of the process": [
        "test_select.py::test_nan_as_a_timeout_is_an_error_and_all_timers_go_on",
    ],
    "a view that is called for one message for ever": [
        "test_application.py::test_loop_ends_with_an_error_if_its_view_leaves_the_message",
    ],
    "an exception in a view, sys.exit() included": [
        "test_application.py::test_error_in_a_view_closes_with_1011_and_is_reported_once",
        "test_application.py::test_whatever_a_view_raises_ends_that_view_only",
    ],
}

THREATS = HANDSHAKE | FRAMES | CLIENTS | OUTAGES | PROCESS


def names_in(file: Path) -> set[str]:
    return {f"{file.name}::{name}" for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("threat", THREATS)
def test_the_tests_of_each_threat_exist(threat: str) -> None:
    assert THREATS[threat]
    for name in THREATS[threat]:
        assert name in names_in(TESTS / name.partition("::")[0])


def test_each_test_of_a_threat_is_listed() -> None:
    written = {name for file in TESTS.glob("test_threats_*.py") for name in names_in(file)}
    assert written <= {name for names in THREATS.values() for name in names}
