//! Tokenizer of a checkpoint: converts texts to ids, with the boundary between instruction and response, and back.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::batch::Sequence;
use super::conversation::{Instruction, PromptResponse};
use super::named_templates::{NamedTemplates, SourceTemplate};
use super::prompt_template::Template;
use super::remarks::{DataRemark, note_keys, note_rendering};
use super::rendered::RenderedText;
use super::special_tokens::SpecialTokens;
use super::text_start::of_post_processor;
use super::untrusted::{self, without_panic};
use super::word_bounds;
use crate::error::{Error, Result};
use crate::model::side_files::{CHAT_TEMPLATE, SideFiles, TOKENIZER, TOKENIZER_CONFIG};

/// Tokenizer from `tokenizer.json`, with the special tokens and chat templates of the files beside it.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    dir: PathBuf,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Ids that transformers puts before a text: BOS, or other tokens of the post-processor; often none.
    start: Vec<u32>,
    /// Whether to omit EOS behind a response (`--no-eos`).
    open_ended: bool,
    /// Tokens that end a response, for the remark on answers that end with none of them.
    stops: Vec<u32>,
    special: Vec<(String, String)>,
    chats: NamedTemplates,
    /// First id that is unknown to the model.
    vocab_limit: Option<usize>,
    /// SHA-256 of the tokenizer's files.
    files_digest: String,
    /// Whether texts are always split at [`word_bounds`].
    has_word_bounds: bool,
    notes: Vec<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of a folder.
    ///
    /// # Errors
    /// Fails like [`Tokenizer::from_side_files`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::from_side_files(&SideFiles::read(dir.as_ref()))
    }

    /// Creates the tokenizer from the contents of `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`. `dir` is for error
    /// messages.
    ///
    /// # Errors
    /// Fails like [`Tokenizer::from_side_files`].
    pub fn from_parts(dir: &Path, tokenizer: &[u8], config: Option<&str>, chat: Option<&str>) -> Result<Self> {
        let optional = [(TOKENIZER_CONFIG, config), (CHAT_TEMPLATE, chat)];
        let optional = optional.into_iter().filter_map(|(name, text)| Some((name, text?.as_bytes())));
        Self::from_side_files(&SideFiles::from_contents(dir, optional.chain([(TOKENIZER, tokenizer)])))
    }

    /// Creates the tokenizer from a folder's files: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `added_tokens.json`, chat templates, and the ids in `config.json` where the other files name no BOS or EOS.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Field`] for a file that is missing, malformed, or in contradiction to another.
    pub fn from_side_files(side: &SideFiles) -> Result<Self> {
        let (path, tokenizer) = (side.path(TOKENIZER), side.required(TOKENIZER)?.as_bytes());
        untrusted::check(tokenizer).map_err(|reason| Error::file(&path, reason))?;
        let mut inner = without_panic(|| tokenizers::Tokenizer::from_bytes(tokenizer).map_err(|e| e.to_string()))
            .and_then(|made| made)
            .map_err(|e| Error::file(&path, format!("no tokenizer can be made of it: {}", one_line(&e))))?;
        let start = without_panic(|| of_post_processor(&inner)).and_then(|made| made);
        let of_file = start.map_err(|e| Error::file(&path, format!("its post_processor fails: {}", one_line(&e))))?;
        // The tokenizer converts only the plain text: it adds no special tokens, neither truncates nor pads, and does not trim offsets.
        inner.with_padding(None).with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_truncation(None).map_err(|e| Error::file(&path, one_line(&e.to_string())))?;

        let mut notes = Vec::new();
        if !side.has(TOKENIZER_CONFIG) {
            notes.push("tokenizer_config.json is missing".into());
        }
        let config = side.fields(TOKENIZER_CONFIG)?;
        let SpecialTokens { bos, eos, named: special, start, notes: found } =
            without_panic(|| SpecialTokens::find(&mut inner, side, &config)).map_err(|e| Error::file(&path, e))??;
        notes.extend(found);
        let start = start.ids(of_file, bos);
        let chats = NamedTemplates::compile(side, &config, &special)?;
        // A template that cannot be compiled matters only if it is used.
        notes.extend(chats.failures().cloned());
        let stops = eos.into_iter().collect();
        let dir = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let (files_digest, has_word_bounds) = (side.tokenizer_digest(), word_bounds::are_kept(&inner));
        Ok(Self {
            inner,
            dir,
            bos,
            eos,
            start,
            open_ended: false,
            stops,
            special,
            chats,
            vocab_limit: None,
            files_digest,
            has_word_bounds,
            notes,
        })
    }

    /// Computes SHA-256, in hexadecimal, of everything that the tokens of a text depend on: the template, the files, later settings and,
    /// for chat templates, their sources and the date that they print.
    pub fn digest(&self, template: &Template) -> String {
        let own =
            (&self.files_digest, self.bos, self.eos, self.open_ended, &self.stops, self.vocab_limit, &self.special);
        let chat = template.renders_chats().then(|| (self.chats.digest(), self.chats.time()));
        let mut hash = Sha256::new();
        hash.update(format!("{template:?} {own:?} {chat:?}"));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Chooses the chat template that `--chat-template` names: one of the folder's templates, or a file.
    ///
    /// # Errors
    /// [`Error::Flag`] where there is no such template, or where it cannot be compiled.
    pub fn choose_chat_template(&mut self, value: &str) -> Result<()> {
        self.chats.choose(value, &self.special)
    }

    /// Returns the chat templates.
    pub fn chat_templates(&self) -> &NamedTemplates {
        &self.chats
    }

    /// Returns the tokens that end a response.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stops
    }

    /// Sets the tokens that end a response. By default, this is only EOS.
    pub fn set_stop_ids(&mut self, stops: Vec<u32>) {
        self.stops = stops;
    }

    /// Returns the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the ids that transformers puts before a text: BOS, other tokens of the post-processor, or none.
    pub fn start_ids(&self) -> &[u32] {
        &self.start
    }

    /// Counts the leading tokens that are not part of the text: [`Tokenizer::start_ids`], or BOS.
    pub(super) fn n_before(&self, ids: &[u32]) -> usize {
        let is_bos = ids.first().is_some_and(|id| Some(*id) == self.bos);
        if ids.starts_with(&self.start) { self.start.len().max(usize::from(is_bos)) } else { usize::from(is_bos) }
    }

    /// Returns the text of an id in the vocabulary; `None` for an id without a token.
    pub fn vocab_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Returns this tokenizer without EOS behind responses, so that their end is neither scored nor trained on.
    #[must_use]
    pub fn without_end(self) -> Self {
        Self { open_ended: true, ..self }
    }

    /// Returns the names of properties in which two tokenizers differ: "vocabulary", "BOS", "EOS", "chat template", "pre-tokenisation".
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let steps = |t: &tokenizers::Tokenizer| {
            serde_json::to_string(&(t.get_normalizer(), t.get_pre_tokenizer(), t.get_decoder())).ok()
        };
        let differs = [
            ("vocabulary", self.inner.get_vocab(true) != other.inner.get_vocab(true)),
            ("pre-tokenisation", steps(&self.inner) != steps(&other.inner)),
            ("BOS", self.bos != other.bos),
            ("EOS", self.eos != other.eos),
            ("chat template", self.chats.digest() != other.chats.digest()),
        ];
        differs.into_iter().filter_map(|(what, differs)| differs.then_some(what)).collect()
    }

    /// Returns the ids from `limit` on that this tokenizer can produce and `other` does not know.
    pub fn added_beyond(&self, other: Option<&Self>, limit: usize) -> Vec<u32> {
        let known = |id: u32| other.is_some_and(|other| other.inner.id_to_token(id).is_some());
        let mut ids: Vec<u32> = self.inner.get_vocab(true).into_values().collect();
        ids.retain(|id| *id as usize >= limit && !known(*id));
        ids.sort_unstable();
        ids
    }

    /// Returns remarks on this tokenizer for the user: no BOS, no EOS, an unusable chat template.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Compares the vocabulary with V, the number of rows of the model's embedding. Added tokens beyond V are refused only where a text
    /// uses them (text-only Gemma 3 has one). A V larger than the vocabulary is usual.
    ///
    /// # Errors
    /// [`Error::File`] where the vocabulary, BOS or EOS exceed V.
    pub fn check_vocab(&mut self, model_vocab: usize) -> Result<()> {
        self.vocab_limit = Some(model_vocab);
        let own = self.inner.get_vocab_size(false);
        let special = self.start.iter().copied().chain(self.bos).chain(self.eos);
        let last = special.map(|id| id as usize + 1).max().unwrap_or(0).max(own);
        if last > model_vocab {
            return Err(Error::file(
                self.path(),
                format!("the tokenizer needs {last} token ids, the model's embedding has {model_vocab} rows"),
            ));
        }
        Ok(())
    }

    /// Checks that texts can be rendered with this template.
    ///
    /// # Errors
    /// [`Error::Flag`] for `chat` without a chat template, or with one that cannot be compiled.
    pub fn check_template(&self, template: &Template) -> Result<()> {
        if *template != Template::Chat {
            return Ok(());
        }
        match self.chats.pick(false) {
            Ok(_) => Ok(()),
            Err(reason) if self.chats.is_empty() => {
                Err(Error::flag("template", format!("chat: {}: {reason}", self.dir.display())))
            }
            Err(reason) => Err(Error::flag("template", format!("chat: {reason}"))),
        }
    }

    /// Returns an error for a conversation if no template for it was chosen, and the tokenizer has no chat template, which is the default.
    /// `place` is the row's location.
    ///
    /// # Errors
    /// [`Error::Flag`], with advice on what to do.
    pub fn check_conversation(&self, instruction: &Instruction, template: &Template, place: &str) -> Result<()> {
        let is_by_rows = template.is_by_rows() && *template.for_instruction(instruction) == Template::Chat;
        let Some(reason) = self.chat(instruction, &Template::Chat).err().filter(|_| is_by_rows) else { return Ok(()) };
        let (dir, reason) = (self.dir.display(), reason.trim_end_matches(": --chat-template NAME"));
        let ways = "give --chat-template (a file, or a name), or --template paper, none or a text with {instruction}";
        Err(Error::flag("template", format!("{place} is a conversation, and {reason} ({dir}): {ways}")))
    }

    /// Returns the chat template for a row, if `--template chat` applies to it.
    fn chat(
        &self,
        instruction: &Instruction,
        template: &Template,
    ) -> std::result::Result<Option<&SourceTemplate>, String> {
        if *template != Template::Chat {
            return Ok(None);
        }
        let has_tools = matches!(instruction, Instruction::Chat(chat) if chat.inputs.tools.is_some());
        self.chats.pick(has_tools).map(Some)
    }

    fn render(&self, text: &PromptResponse, template: &Template) -> std::result::Result<RenderedText, String> {
        let template = template.for_instruction(&text.instruction);
        template.render(text, self.chat(&text.instruction, template)?.map(|chat| &chat.template))
    }

    fn render_instruction(
        &self,
        instruction: &Instruction,
        template: &Template,
    ) -> std::result::Result<String, String> {
        template.instruction(instruction, self.chat(instruction, template)?.map(|chat| &chat.template))
    }

    /// Computes `tok(template(I) + R) + [EOS]`. The boundary between instruction and response is found by offsets; a token that spans it
    /// belongs to the response. BOS is put before [`Template::None`] and the paper's templates, and the tokenizer's own leading tokens
    /// ([`Tokenizer::start_ids`]) before other templates. These tokens and EOS are added only where they are missing. A chat template's
    /// text is tokenised without additions.
    ///
    /// # Errors
    /// The reason, without the row's location, which the caller knows.
    pub fn encode(&self, text: &PromptResponse, template: &Template) -> std::result::Result<Sequence, String> {
        self.encode_behind(text, template, &mut BTreeSet::new(), &mut None)
    }

    /// Encodes a text like [`Tokenizer::encode`], and adds remarks on the text for the user. `before` is an earlier text that may have the
    /// same beginning, whose tokens are then reused. This text replaces it.
    ///
    /// # Errors
    /// Fails like [`Tokenizer::encode`].
    pub(super) fn encode_behind(
        &self,
        text: &PromptResponse,
        template: &Template,
        remarks: &mut BTreeSet<DataRemark>,
        before: &mut Option<TokenisedText>,
    ) -> std::result::Result<Sequence, String> {
        let template = template.for_instruction(&text.instruction);
        let chat = self.chat(&text.instruction, template)?;
        let rendered = template.render(text, chat.map(|chat| &chat.template))?;
        note_keys(text, chat.map(|chat| chat.source.as_str()), remarks);
        note_rendering(text, &rendered, remarks);
        let tokenised = self.tokenise_behind(&rendered.text, before.take())?;
        let TokenisedText { ids: tokens, offsets, .. } = before.insert(tokenised);
        let mut scored = rendered.scored.clone();
        for (answer, asks) in &rendered.cut {
            let parted = self.parted(tokens, offsets, asks)?;
            scored[*answer].start = scored[*answer].start.min(parted);
        }
        let answers: Vec<Range<usize>> = scored
            .iter()
            .map(|bytes| {
                let first = offsets.iter().position(|(_, end)| *end > bytes.start).unwrap_or(tokens.len());
                let behind = offsets[first..].iter().position(|(start, _)| *start >= bytes.end);
                let is_last = bytes.end == rendered.text.len();
                first..behind.filter(|_| !is_last).map_or(tokens.len(), |n| first + n)
            })
            .filter(|tokens| !tokens.is_empty())
            .collect();
        let start = answers.first().map_or(tokens.len(), |first| first.start);
        let mut between: Vec<Range<usize>> =
            answers.windows(2).map(|two| two[0].end..two[1].start).filter(|gap| !gap.is_empty()).collect();
        if let Some(last) = answers.last().filter(|last| last.end < tokens.len()) {
            between.push(last.end..tokens.len());
        }
        if *template == Template::Chat {
            let is_blank = |(id, (from, to)): &(&u32, &(usize, usize))| {
                !self.stops.contains(id) && rendered.text.get(*from..*to).is_some_and(|text| text.trim().is_empty())
            };
            let n = answers.last().map_or(0, |answer| answer.end);
            let last = tokens[..n].iter().zip(&offsets[..n]).rev().find(|token| !is_blank(token));
            if last.is_none_or(|(id, _)| !self.stops.contains(id)) {
                remarks.insert(DataRemark::Open);
            }
            return Ok(Sequence { ids: tokens.clone(), response_start: start, between });
        }
        let ends = tokens.last().is_some_and(|id| Some(*id) == self.eos);
        let before = self.ids_before(tokens, template);
        let after = self.eos.filter(|_| !ends && !self.open_ended);
        let ids = before.iter().chain(tokens.iter()).copied().chain(after).collect();
        Ok(Sequence::new(ids, start + before.len()))
    }

    /// Returns the byte offset up to which a text's tokens equal those of `asks`, the text that asks for the text's answer.
    fn parted(&self, ids: &[u32], offsets: &[(usize, usize)], asks: &str) -> std::result::Result<usize, String> {
        let asks = self.tokenise(asks)?;
        let whole = ids.iter().zip(offsets);
        let same = whole.zip(asks.get_ids().iter().zip(asks.get_offsets())).take_while(|(a, b)| a == b);
        Ok(same.last().map_or(0, |((_, (_, end)), _)| *end))
    }

    /// Tokenises a text, reusing the tokens of the beginning that it shares with `before`.
    fn tokenise_behind(&self, text: &str, before: Option<TokenisedText>) -> std::result::Result<TokenisedText, String> {
        let shared = before.filter(|_| self.has_word_bounds).and_then(|before| before.cut(text));
        let (at, TokenisedText { mut ids, mut offsets, .. }) = shared.unwrap_or_default();
        let rest = self.tokenise(&text[at..])?;
        ids.extend(rest.get_ids());
        offsets.extend(rest.get_offsets().iter().map(|(start, end)| (start + at, end + at)));
        Ok(TokenisedText { text: text.into(), ids, offsets })
    }

    /// Returns the tokens to put before a template's tokens; empty where the template's tokens already begin with them.
    fn ids_before(&self, tokens: &[u32], template: &Template) -> &[u32] {
        let before = match template {
            Template::Paper | Template::PaperTldr | Template::ByRows | Template::None => self.bos.as_slice(),
            Template::Plain | Template::Trl | Template::Text(_) => &self.start,
            Template::Chat => &[],
        };
        if tokens.starts_with(before) { &[] } else { before }
    }

    /// Counts the characters of the text that [`Tokenizer::encode`] tokenises.
    pub(super) fn characters(&self, text: &PromptResponse, template: &Template) -> std::result::Result<usize, String> {
        Ok(self.render(text, template)?.text.chars().count())
    }

    /// Computes `tok(template(I))`, with the leading tokens of [`Tokenizer::encode`]: the start of a generation.
    ///
    /// # Errors
    /// The reason, such as an instruction that the template cannot represent.
    pub fn encode_prompt(
        &self,
        instruction: &Instruction,
        template: &Template,
    ) -> std::result::Result<Vec<u32>, String> {
        let template = template.for_instruction(instruction);
        let ids = self.encode_text(&self.render_instruction(instruction, template)?)?;
        Ok([self.ids_before(&ids, template), &ids].concat())
    }

    /// Computes `tok(template(I) + start)`, with the leading tokens of [`Tokenizer::encode`]: a response that begins with `start` and has
    /// not ended. The boundary is found as in [`Tokenizer::encode`].
    ///
    /// # Errors
    /// The reason, such as an instruction that the template cannot represent.
    pub fn encode_begun(
        &self,
        instruction: &Instruction,
        start: &str,
        template: &Template,
    ) -> std::result::Result<Sequence, String> {
        let template = template.for_instruction(instruction);
        let asked = self.render_instruction(instruction, template)?;
        let encoding = self.tokenise(&format!("{asked}{start}"))?;
        let (tokens, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let boundary = offsets.iter().position(|(_, end)| *end > asked.len()).unwrap_or(tokens.len());
        let before = self.ids_before(tokens, template);
        Ok(Sequence::new([before, tokens].concat(), boundary + before.len()))
    }

    /// Tokenises a text without template, BOS or EOS.
    ///
    /// # Errors
    /// The reason, such as a token that is unknown to the model.
    pub fn encode_text(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        Ok(self.tokenise(text)?.get_ids().to_vec())
    }

    fn tokenise(&self, text: &str) -> std::result::Result<tokenizers::Encoding, String> {
        let encoding = without_panic(|| self.inner.encode(text, false).map_err(|e| e.to_string()))
            .and_then(|made| made)
            .map_err(|e| format!("{} fails at this text: {}", self.path().display(), one_line(&e)))?;
        if let Some(limit) = self.vocab_limit
            && let Some(at) = encoding.get_ids().iter().position(|id| *id as usize >= limit)
        {
            let (id, token) = (encoding.get_ids()[at], &encoding.get_tokens()[at]);
            return Err(format!(
                "token `{}` has id {id}, the model's embedding has {limit} rows",
                token.escape_debug()
            ));
        }
        Ok(encoding)
    }

    /// Returns the text of ids, without special tokens.
    ///
    /// # Errors
    /// [`Error::File`] where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    /// Returns the text of ids, including special tokens.
    ///
    /// # Errors
    /// Fails like [`Tokenizer::decode`].
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        without_panic(|| self.inner.decode(ids, skip_special).map_err(|e| e.to_string()))
            .and_then(|made| made)
            .map_err(|e| Error::file(self.path(), format!("its decoder fails: {}", one_line(&e))))
    }

    fn path(&self) -> PathBuf {
        self.dir.join("tokenizer.json")
    }

    /// Returns the id of a token of the vocabulary, as the vocabulary writes it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Formats a token for display: its text with escapes or, where it is part of a character, its name in the vocabulary.
    pub fn show(&self, id: u32) -> String {
        let name = || self.inner.id_to_token(id).unwrap_or_else(|| format!("#{id}"));
        // A token decoded alone loses its leading space, so the vocabulary's mark for it is used.
        let text = match self.inner.id_to_token(id) {
            Some(token) if token.starts_with('▁') => token.replace('▁', " "),
            _ => self.decode_all(&[id]).unwrap_or_default(),
        };
        let text = if text.is_empty() || text.contains('\u{fffd}') { name() } else { text };
        text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
    }
}

/// Text with its tokens.
#[derive(Debug, Default)]
pub(super) struct TokenisedText {
    text: String,
    ids: Vec<u32>,
    /// Byte range of each token.
    offsets: Vec<(usize, usize)>,
}

impl TokenisedText {
    /// Removes the tokens behind the last word bound inside the common beginning of this text and `text`. Also returns the bound.
    fn cut(mut self, text: &str) -> Option<(usize, Self)> {
        let at = word_bounds::last_shared(&self.text, text)?;
        let n = self.offsets.iter().position(|(_, end)| *end > at).unwrap_or(self.offsets.len());
        // An added token that absorbs the white space behind it may end behind the bound.
        if self.offsets.get(n).is_some_and(|(start, _)| *start < at) {
            return None;
        }
        self.ids.truncate(n);
        self.offsets.truncate(n);
        Some((at, self))
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
