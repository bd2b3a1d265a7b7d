#include "serve/chat_answer.h"

namespace mixtral::serve {

void ChatAnswer::start(Service& service, const ChatRequest& request,
                       const std::shared_ptr<ChatAnswer>& answer) {
  const Started started = service.chat(request, answer);
  answer->started(started.prompt_tokens);
  service.end_with_client(started.job, *answer->reply_);
}

void ChatAnswer::started(int64_t prompt_tokens) {
  const std::lock_guard lock(mutex_);
  begin(prompt_tokens);
  for (const std::function<void()>& function : held_) function();
  held_.clear();
  begun_ = true;
}

void ChatAnswer::call(std::function<void()> function) {
  const std::lock_guard lock(mutex_);
  if (begun_)
    function();
  else
    held_.push_back(std::move(function));
}

void ChatAnswer::on_delta(size_t /*choice*/, const ChatDelta& part) {
  call([this, part] { add(part); });
}

void ChatAnswer::on_finish(size_t /*choice*/, const ChatFinish& last) {
  call([this, last] { finish(last); });
}

void ChatAnswer::on_done() {}

void ChatAnswer::on_error(const ApiError& error) {
  call([this, error] { fail(error); });
}

}  // namespace mixtral::serve
