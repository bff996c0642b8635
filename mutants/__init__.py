"""Bugs of the kinds that queues really ship, put into copies of this one: the tests must find each of them."""
