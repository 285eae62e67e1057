"""Asking a vision-language model: messages with pictures and films, who answers, and what answers say."""

from rewards.chat.messages import ChatModel, LogprobModel, Message, Video, VLMError

__all__ = ["ChatModel", "LogprobModel", "Message", "VLMError", "Video"]
