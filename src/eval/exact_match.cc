#include "eval/exact_match.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/advice.h"
#include "infer/methods.h"

namespace mixtral {
namespace {

std::string trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kSpace) - begin + 1));
}

ExactQuestion plain_question(const Tokenizer& tokenizer, std::string prompt,
                             std::string_view answer) {
  ExactQuestion question;
  question.prompt = prompt_tokens(tokenizer, prompt);
  question.text = std::move(prompt);
  question.answer = trimmed(answer);
  return question;
}

ExactQuestion question_of(const Record& record, const Tokenizer& tokenizer,
                          const QuestionRules& rules, const std::string& source) {
  switch (record.kind) {
    case RecordKind::text: {
      const size_t at = record.text.rfind(rules.response_marker);
      if (at == std::string::npos)
        throw AdvisedError(
            fmt::format("{}: there is no response marker \"{}\" in the text; set ‹response-marker›",
                        source, rules.response_marker));
      const size_t end = at + rules.response_marker.size();
      return plain_question(tokenizer, record.text.substr(0, end), record.text.substr(end));
    }
    case RecordKind::completion:
      return plain_question(tokenizer, record.prompt, record.completion);
    case RecordKind::messages: {
      std::vector<Message> messages = record.messages;
      if (messages.back().role != "assistant")
        throw Error(
            fmt::format("{}: messages: the last turn is the user's, so there is no answer to "
                        "compare with; end the conversation with the assistant's",
                        source));
      ExactQuestion question;
      question.answer = trimmed(messages.back().content);
      messages.pop_back();
      const ChatTemplate chat = rules.records.chat_template;
      question.text = render_chat(chat, messages, source);
      question.prompt = encode_chat(tokenizer, chat, messages, source).ids;
      return question;
    }
    default:
      throw Error(fmt::format(
          "{}: is no question; expected {{\"text\"}} with a response marker, {{\"prompt\", "
          "\"completion\"}} or {{\"messages\"}}, found {{{}}}",
          source, record_kind_name(record.kind)));
  }
}

}  // namespace

std::vector<ExactQuestion> read_questions(const std::filesystem::path& path,
                                          const Tokenizer& tokenizer, const QuestionRules& rules,
                                          int64_t limit) {
  const RecordFile file(path);
  if (file.is_plain_text())
    throw Error(fmt::format("{}: plain text has no questions; give a .jsonl file", path.string()));
  const int64_t count = limit > 0 ? std::min(limit, file.lines()) : file.lines();
  std::vector<ExactQuestion> questions;
  for (int64_t i = 0; i < count; ++i) {
    const std::string source = file.source(i);
    const Record record = parse_record(file.line(i), source, rules.records);
    questions.push_back(question_of(record, tokenizer, rules, source));
    questions.back().source = source;
    const Json json = Json::parse(file.line(i), source);
    if (const Json* kind = json.find("kind"); kind != nullptr && kind->is_string())
      questions.back().kind = kind->as_string();
    if (questions.back().answer.empty())
      throw Error(fmt::format("{}: the answer is empty", source));
  }
  if (questions.empty()) throw Error(fmt::format("{}: holds no question", path.string()));
  return questions;
}

ExactMatch exact_match(Engine& engine, const Tokenizer& tokenizer,
                       const std::vector<ExactQuestion>& questions,
                       const ExactMatchOptions& options,
                       const std::function<void(int64_t)>& progress) {
  TextOptions how;
  how.tokens.sampling.temperature = 0;
  how.tokens.max_tokens = options.max_tokens;
  how.tokens.stop_ids = options.stop_ids;
  how.stop = {"\n", "###"};
  for (const ExactQuestion& question : questions)
    if (static_cast<int64_t>(question.prompt.size()) >= engine.context())
      throw AdvisedError(fmt::format(
          "{}: the question's {} tokens leave no room for an answer in a context of {}; shorten "
          "it, or raise ‹context› where the model has more positions",
          question.source, question.prompt.size(), engine.context()));
  std::vector<GeneratedText> texts(questions.size());
  std::vector<RequestId> ids;
  int64_t done = 0;
  const auto count = [&] {
    ++done;
    if (progress) progress(done);
  };
  ids.reserve(questions.size());
  for (size_t i = 0; i < questions.size(); ++i)
    ids.push_back(submit_text(engine, &tokenizer, questions[i].prompt, how, texts[i], {}, count));
  run_requests(engine, ids);
  ExactMatch result;
  for (size_t i = 0; i < questions.size(); ++i) {
    ExactMatch::Answer answer{.given = trimmed(texts[i].text)};
    answer.right = answer.given == questions[i].answer;
    result.right += answer.right;
    result.answers.push_back(std::move(answer));
  }
  return result;
}

double most_common_share(const std::vector<ExactQuestion>& questions) {
  std::map<std::string, int64_t> counts;
  int64_t most = 0;
  for (const ExactQuestion& question : questions) most = std::max(most, ++counts[question.answer]);
  return questions.empty() ? 0 : static_cast<double>(most) / static_cast<double>(questions.size());
}

}  // namespace mixtral
