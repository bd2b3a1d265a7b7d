#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "serve/chat_request.h"
#include "serve/http.h"
#include "serve/service.h"

namespace mixtral::serve {

/// One answer of a conversation on its way to a client, in the form that a protocol derives from
/// this. The engine may begin before Service::chat has returned; what it says by then is kept until
/// `begin` was called, so that the functions below are called in their order, one at a time.
class ChatAnswer : public ChatListener {
 public:
  explicit ChatAnswer(std::shared_ptr<Reply> reply) : reply_(std::move(reply)) {}

  /// Queues a conversation whose answer goes to `answer`, and ends it when the client goes. Throws
  /// ApiError while nothing has been answered.
  static void start(Service& service, const ChatRequest& request,
                    const std::shared_ptr<ChatAnswer>& answer);

  /// The conversation is queued; its prompt has so many tokens. `start` calls it.
  void started(int64_t prompt_tokens);

  void on_delta(size_t choice, const ChatDelta& part) final;
  void on_finish(size_t choice, const ChatFinish& finish) final;
  void on_done() final;
  void on_error(const ApiError& error) final;

 protected:
  virtual void begin(int64_t prompt_tokens) = 0;
  virtual void add(const ChatDelta& part) = 0;
  /// The last call, unless it fails.
  virtual void finish(const ChatFinish& finish) = 0;
  virtual void fail(const ApiError& error) = 0;

  Reply& reply() const { return *reply_; }
  const std::shared_ptr<Reply>& shared_reply() const { return reply_; }

 private:
  void call(std::function<void()> function);

  std::shared_ptr<Reply> reply_;
  std::mutex mutex_;
  bool begun_ = false;
  std::vector<std::function<void()>> held_;  // until begun_
};

}  // namespace mixtral::serve
