"""Bugs in the connections of RedisStorage to its servers."""

from __future__ import annotations

from mutants.mutant import Mutant

_CHANNELS = "tests/redis_link/test_channels.py::"
_LINK = "tests/redis_link/test_link.py::"
_MARKERS = "tests/redis_link/test_markers.py::"
_OPENING = "tests/redis_link/test_opening.py::"
_PARTS = "tests/redis_link/test_parts.py::"

WIRES = (
    Mutant(
        "redis-lists-in-the-same-order",
        "storage/redis/markers.py",
        "a busy queue keeps the idle workers of another asleep",
        "        first = self._rounds % len(keys)\n",
        "        first = 0\n",
        (f"{_MARKERS}test_a_list_that_is_never_empty_keeps_no_other_waiting[valkey]",),
    ),
    Mutant(
        "redis-link-counts-the-lost",
        "storage/redis/link.py",
        "a sound connection is given up for replies that a lost one owed",
        "        self._sent.clear()\n",
        "",
        (f"{_LINK}test_what_was_lost_with_a_connection_is_not_held_against_the_next",),
    ),
    Mutant(
        "redis-link-stuck-when-full",
        "storage/redis/link.py",
        "a command that had to wait is sent only when somebody asks for something else",
        "lost=self._lose, emptied=self._flush)",
        "lost=self._lose)",
        (f"{_LINK}test_what_had_to_wait_for_a_busy_server_is_sent_when_it_takes_more",),
    ),
    Mutant(
        "redis-second-newcomer-not-heard",
        "storage/redis/markers.py",
        "of workers that fall asleep one by one most are woken seconds late",
        "        self._round, self._interrupted = frozenset(self._waiters), False\n",
        "        self._round = frozenset(self._waiters)\n",
        (f"{_MARKERS}test_whoever_comes_later_is_heard_however_many_came_before[valkey]",),
    ),
    Mutant(
        "redis-channels-close-leaves-callers",
        "storage/redis/channels.py",
        "a subscription that a stop meets is waited for until its time limit",
        """            if not subscription.confirmed.done():
                subscription.confirmed.set_exception(unavailable(self._dialer.address, "closed"))
                subscription.confirmed.exception()
        self._subscriptions.clear()""",
        "            pass\n        self._subscriptions.clear()",
        (f"{_CHANNELS}test_a_subscription_that_waits_as_its_channels_are_closed_fails",),
    ),
    Mutant(
        "redis-channels-never-ask-again",
        "storage/redis/channels.py",
        "a channel that was refused for a moment after a restart is never heard again",
        """                if not subscription.heard:
                    self._ask(subscription)
            self._send""",
        "                pass\n            self._send",
        (f"{_CHANNELS}test_a_channel_that_was_refused_for_a_while_is_asked_for_again",),
    ),
    Mutant(
        "redis-channels-mix-up-answers",
        "storage/redis/channels.py",
        "after a lost connection each answer is taken for the one before it",
        "                self._asked.clear()\n",
        "",
        (f"{_CHANNELS}test_answers_that_a_lost_connection_owed_are_not_waited_for_on_the_next",),
    ),
    Mutant(
        "redis-channels-believe-any-confirmation",
        "storage/redis/channels.py",
        "a waiter believes that it is heard, and is not",
        "return asked is not None and reply[1:2] == [asked.channel.encode()]",
        "return asked is not None",
        (f"{_CHANNELS}test_the_confirmation_of_another_channel_is_not_believed",),
    ),
    Mutant(
        "redis-wire-leaked-by-a-bad-greeting",
        "storage/redis/wire.py",
        "while a server is not ready each look at it costs a descriptor",
        """            except BaseException:
                await wire.close()
                raise
            return wire""",
        "            except BaseException:\n                raise\n            return wire",
        (f"{_OPENING}test_a_server_that_is_not_ready_costs_no_connections",),
    ),
    Mutant(
        "redis-dialer-gives-no-peace",
        "storage/redis/wire.py",
        "a server that hangs up on everybody is called without a pause",
        "            self._failures += 1\n            await asyncio.sleep(self._pause())\n",
        "            pass\n",
        (f"{_OPENING}test_a_server_that_hangs_up_on_everybody_is_called_less_and_less_often",),
    ),
    Mutant(
        "redis-parts-left-behind",
        "storage/redis/namespace.py",
        "a batch that failed is sent again while parts of it are under way",
        "answers = await asyncio.gather(*parts, return_exceptions=True)",
        "answers = await asyncio.gather(*parts)",
        (f"{_PARTS}test_a_batch_has_not_failed_before_its_last_part_has_ended",),
    ),
    Mutant(
        "redis-link-breaks-on-a-slow-line",
        "storage/redis/link.py",
        "many large results over a slow line never arrive, since each connection is broken before the last has",
        "max(self._sent[0][1], self._answered_at)",
        "self._sent[0][1]",
        (f"{_LINK}test_replies_that_each_come_in_time_do_not_break_the_connection",),
    ),
)
