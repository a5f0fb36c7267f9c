"""Common English words: what the scripted engine writes with, and what the `tiny` model's tokenizer knows."""

OPENERS = (
    "hello", "please", "today", "yesterday", "since the update", "for two weeks", "again", "in short",
    "as far as i can see", "after the meeting", "on monday", "this morning",
)  # fmt: skip
SUBJECTS = (
    "my order", "the invoice", "our server", "the new printer", "this account", "the last payment", "the report",
    "a colleague", "the password", "their website", "the delivery", "your service", "the meeting", "our team",
    "the screen", "the old contract",
)  # fmt: skip
VERBS = (
    "does not work", "was never delivered", "arrived broken", "needs a change", "is far too slow", "was sent twice",
    "keeps failing", "must be checked", "looks different now", "cannot be opened", "should be cheaper", "is still open",
)  # fmt: skip
LINKS = ("and", "but", "because", "while", "so", "although")
CLOSERS = (
    "can someone help me", "thank you for your time", "let me know what to do", "it is quite urgent",
    "there is no need to hurry", "that would be very kind", "call me when it is done", "we have tried it before",
)  # fmt: skip
COMMON = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by but some",
    "what there we can out other were all your when up use word how said an each she which do their time if will way",
    "about many then them would write like so these her long make thing see him two has look more day could go come",
    "did my sound no most number who over know water than call first people may down side been now find system user",
    "assistant question answer text",
)


def vocabulary() -> list[str]:
    """Every word above, once, in a fixed order."""
    phrases = (*COMMON, *OPENERS, *SUBJECTS, *VERBS, *LINKS, *CLOSERS)
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))
