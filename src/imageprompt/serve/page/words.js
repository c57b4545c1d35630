// All words of the page, in each language. `{n}` is a value; `{n|one|many}` is a number with its noun.
const en = {
  compose: "Compose", stage: "Canvas", shelf: "Gallery and library", gallery: "Gallery", library: "Library", views: "Views",
  tab_compose: "Compose", tab_picture: "Canvas", tab_gallery: "Gallery", tab_library: "Library",
  openPicture: "Restore", openHint: "Open a picture made here and restore all that made it", language: "Language", help: "Keys and help",
  theme_auto: "Colours: as the system", theme_sun: "Colours: light", theme_moon: "Colours: dark",
  close: "Close", cancel: "Cancel", done: "Done", clear: "Clear", edit: "Edit", undo: "Undo", redo: "Redo", save: "Save", again: "Try again", later: "Later", more: "More", custom: "custom",

  references: "References", addReference: "Add a picture", addStyle: "Styles", reference: "Reference {number}", picture: "Picture", face: "Face", tokens: "Tokens",
  noReferences: "A reference is a picture that says what words cannot. Drop one anywhere on this page.",
  move: "Move reference {number}", moveHint: "Drag, or use the arrow keys", moved: "Reference moved to place {number}", mute: "Mute reference {number}", remove: "Remove reference {number}", removed: "Reference {number} is removed.",
  referenceAdded: "Reference {number} is added", addPicture: "Add a picture to reference {number}", removePicture: "Remove picture {at} of reference {number}",
  take: "Take", everything: "everything", adapter: "Adapter", automatic: "automatic", strength: "Strength", composition: "Composition", boost: "Boost", bySite: "by layer", oneNumber: "Use one number",
  when: "When", curve: "Curve", stepsOf: "step {first}–{last} of {n}", firstStep: "First step", lastStep: "Last step",
  curve_constant: "constant", "curve_linear-in": "linear in", "curve_linear-out": "linear out", "curve_ease-in": "ease in", "curve_ease-out": "ease out", "curve_ease-in-out": "ease in-out",
  where: "Where", wholePicture: "whole picture", paintArea: "Paint area",
  framing: "Framing", framing_auto: "automatic", framing_crop: "crop", framing_pad: "pad", framing_squash: "squash", framing_tiles: "tiles",
  whichFace: "Which face", face_largest: "largest", face_all: "all", face_0: "first", face_1: "second", face_2: "third",
  fusion: "Several pictures", fusion_concat: "side by side", fusion_average: "average", fusion_weighted: "weighted",
  styleName: "Name of the style", keepAsStyle: "Keep as style", styleKept: "The style {name} is in the library.",
  "preset_linear": "linear", "preset_ease in": "ease in", "preset_ease out": "ease out", "preset_ease in-out": "ease in-out", "preset_reverse in-out": "reverse in-out",
  "preset_weak input": "weak input", "preset_weak output": "weak output", "preset_weak middle": "weak middle", "preset_strong middle": "strong middle",
  "preset_style transfer": "style transfer", "preset_composition": "composition", "preset_strong style transfer": "strong style transfer",
  "preset_style and composition": "style and composition", "preset_strong style and composition": "strong style and composition",
  "preset_style transfer precise": "style transfer precise", "preset_composition precise": "composition precise", "preset_style": "style", "preset_layout": "layout", "preset_style and layout": "style and layout",

  prompt: "Prompt", promptHint: "What should be in the picture?", negative: "Negative prompt", negativeHint: "What should not be in it?", addNegative: "Negative prompt",
  startPicture: "Start picture", addStart: "Start from a picture", removeStart: "Remove the start picture", change: "Change", paintInpaint: "Paint what to redo", editInpaint: "Edit the area", inpaintMask: "Area to redo",
  settings: "Settings", size: "Size", width: "Width", height: "Height", shape: "Shape", steps: "Steps", guidance: "Guidance", seed: "Seed", newSeed: "new each run", startOver: "Start over",
  run: "Run", runText: "Run from words", count: "Number of pictures", progress: "Progress", sent: "Sent", running: "Running", waiting: "Waiting", cancelling: "Cancelling", cancelled: "Cancelled", cancelAll: "Cancel all",
  stepOf: "Step {step} of {total}", placeInQueue: "Place {place} in the queue", waitingJobs: "{count} more", ready: "{count|picture|pictures} ready",

  canvasTitle: "Canvas", making: "In the making", made: "Picture", preview: "Preview", gone: "gone", recipe: "Recipe", noPrompt: "no words",
  emptyTitle: "Start with a picture", emptyText: "Drop one anywhere: it becomes a reference. A picture made here brings back all of its settings.",
  readyTitle: "Ready", readyText: "Press Run. The picture grows here.",
  showMasks: "Masks", useThis: "Use this", deletePicture: "Delete", restored: "The settings are restored.", asReference: "Use as reference instead",
  compare: "Compare", comparing: "Comparing A and B", chooseSecond: "Choose the second picture in the gallery.", compareAt: "Boundary between A and B", sideBySide: "Side by side", swap: "Swap",
  sweep: "Sweep", sweepNote: "A sweep makes the same picture at several strengths, so that you can see which one is right.", vary: "Vary", strengthOf: "Strength of reference {number}", from: "From", to: "To", columns: "Columns", seeds: "Seeds",
  runSweep: "Make {count|picture|pictures}", cell: "{value}, seed {seed}", cell_queued: "…", cell_failed: "failed", cell_cancelled: "cancelled", used: "{value} is now in the settings.",
  maskOf: "Where reference {number} acts", painting: "Painting", brush: "Brush", eraser: "Eraser", brushSize: "Size", invert: "Invert", clearMask: "Clear the mask", loadMask: "Load a mask picture", fill: "Fill …",
  half_left: "left half", half_right: "right half", half_top: "upper half", half_bottom: "lower half", half_whole: "everything", canvas: "Area to paint", paintNote: "Paint where it should act. Strokes may leave the frame. [ and ] change the brush, E erases, Ctrl Z takes back one stroke.",

  noPictures: "Your pictures will be here.", older: "Older pictures", thumb: "{prompt}, seed {seed}", deleted: "{count|picture|pictures} deleted.",
  searchStyles: "Search styles", resembling: "Find styles that resemble a picture", byResemblance: "By resemblance", showAll: "Show all", noStyles: "No styles yet. Open “More” on a reference to keep it as one.", noneFound: "Nothing found.", noAdapter: "fits no adapter here",
  use: "Use", useStyle: "Use the style {name}", deleteStyle: "Delete the style {name}", styleDeleted: "The style {name} is deleted.",
  mix: "Mix", mixNote: "Choose two or more styles.", mixShares: "Set the shares.", mixWith: "Mix {name}", mixNow: "Mix",

  missingTitle: "Pictures are missing", missingText: "These references made the picture, but the server does not have them. Give the same files, or use what the picture keeps of them.",
  chooseFile: "Choose", wrongFile: "This is another file: its hash differs.", useTokens: "Use the tokens in the picture",
  keyTitle: "Key", keyText: "This server asks for a key.", keyWrong: "The server does not know this key.", key: "Key", enter: "Continue", noKey: "The server asks for a key.",
  offline: "The server does not answer.", tryIn: "Try again in {seconds} s.", notAPicture: "Only PNG, JPEG and WebP pictures can be used.",
  dropHere: "Drop it", dropNote: "A picture made here restores its settings. Any other becomes a reference.",
  key_run: "Run", key_cancel: "Cancel the running picture", key_prompt: "To the prompt", key_gallery: "Next and previous picture", key_delete: "Delete the picture", key_move: "Move a reference (on its handle)", key_undo: "Take back a stroke", key_brush: "Smaller and larger brush", key_eraser: "Eraser", key_help: "This help", key_close: "Close, leave",
  helpDrop: "Drop or paste pictures anywhere. A PNG made by imageprompt restores all of its settings.",
};

const zh = {
  compose: "创作", stage: "画布", shelf: "图库与风格库", gallery: "图库", library: "风格库", views: "视图",
  tab_compose: "创作", tab_picture: "画布", tab_gallery: "图库", tab_library: "风格库",
  openPicture: "还原", openHint: "打开在此生成的图片，还原其全部设置", language: "语言", help: "快捷键与帮助",
  theme_auto: "配色：跟随系统", theme_sun: "配色：浅色", theme_moon: "配色：深色",
  close: "关闭", cancel: "取消", done: "完成", clear: "清除", edit: "编辑", undo: "撤销", redo: "重做", save: "保存", again: "重试", later: "以后再说", more: "更多", custom: "自定义",

  references: "参考图", addReference: "添加图片", addStyle: "风格", reference: "参考图 {number}", picture: "图片", face: "人脸", tokens: "特征",
  noReferences: "参考图能表达文字难以描述的内容。把图片拖到页面任意位置即可。",
  move: "移动参考图 {number}", moveHint: "拖动，或使用方向键", moved: "参考图已移到第 {number} 位", mute: "停用参考图 {number}", remove: "移除参考图 {number}", removed: "参考图 {number} 已移除。",
  referenceAdded: "已添加参考图 {number}", addPicture: "为参考图 {number} 再添加一张图片", removePicture: "移除参考图 {number} 的第 {at} 张图片",
  take: "取用", everything: "全部", adapter: "适配器", automatic: "自动", strength: "强度", composition: "构图", boost: "增强", bySite: "按层设定", oneNumber: "改用单一数值",
  when: "时段", curve: "曲线", stepsOf: "第 {first}–{last} 步，共 {n} 步", firstStep: "起始步", lastStep: "结束步",
  curve_constant: "恒定", "curve_linear-in": "线性渐入", "curve_linear-out": "线性渐出", "curve_ease-in": "缓入", "curve_ease-out": "缓出", "curve_ease-in-out": "缓入缓出",
  where: "区域", wholePicture: "整个画面", paintArea: "涂抹区域",
  framing: "取景", framing_auto: "自动", framing_crop: "裁剪", framing_pad: "补边", framing_squash: "压缩", framing_tiles: "分块",
  whichFace: "选择人脸", face_largest: "最大", face_all: "全部", face_0: "第一张", face_1: "第二张", face_2: "第三张",
  fusion: "多图合并", fusion_concat: "并列", fusion_average: "平均", fusion_weighted: "加权",
  styleName: "风格名称", keepAsStyle: "存为风格", styleKept: "风格 {name} 已存入风格库。",
  "preset_linear": "线性", "preset_ease in": "缓入", "preset_ease out": "缓出", "preset_ease in-out": "缓入缓出", "preset_reverse in-out": "反向缓入缓出",
  "preset_weak input": "弱输入", "preset_weak output": "弱输出", "preset_weak middle": "弱中间", "preset_strong middle": "强中间",
  "preset_style transfer": "风格迁移", "preset_composition": "构图", "preset_strong style transfer": "强风格迁移",
  "preset_style and composition": "风格与构图", "preset_strong style and composition": "强风格与构图",
  "preset_style transfer precise": "精确风格迁移", "preset_composition precise": "精确构图", "preset_style": "风格", "preset_layout": "布局", "preset_style and layout": "风格与布局",

  prompt: "提示词", promptHint: "画面里应该有什么？", negative: "反向提示词", negativeHint: "画面里不应该有什么？", addNegative: "反向提示词",
  startPicture: "起始图", addStart: "从一张图片开始", removeStart: "移除起始图", change: "变化程度", paintInpaint: "涂抹要重画的部分", editInpaint: "编辑重画区域", inpaintMask: "重画区域",
  settings: "设置", size: "尺寸", width: "宽", height: "高", shape: "比例", steps: "步数", guidance: "引导强度", seed: "种子", newSeed: "每次更换", startOver: "重新开始",
  run: "生成", runText: "仅用文字生成", count: "图片数量", progress: "进度", sent: "已提交", running: "正在生成", waiting: "等待中", cancelling: "正在取消", cancelled: "已取消", cancelAll: "全部取消",
  stepOf: "第 {step} 步，共 {total} 步", placeInQueue: "排在第 {place} 位", waitingJobs: "还有 {count} 项", ready: "已生成 {count} 张图片",

  canvasTitle: "画布", making: "生成中", made: "图片", preview: "预览", gone: "已不存在", recipe: "配方", noPrompt: "无提示词",
  emptyTitle: "从一张图片开始", emptyText: "把图片拖到任意位置作为参考图。在此生成的图片会带回它的全部设置。",
  readyTitle: "准备就绪", readyText: "点击“生成”，图片会在这里逐步显现。",
  showMasks: "蒙版", useThis: "使用此设置", deletePicture: "删除", restored: "设置已还原。", asReference: "改作参考图",
  compare: "对比", comparing: "对比 A 与 B", chooseSecond: "请在图库中选择第二张图片。", compareAt: "A 与 B 的分界", sideBySide: "并排", swap: "交换",
  sweep: "扫描", sweepNote: "扫描会以不同强度生成同一画面，方便找出最合适的一档。", vary: "变量", strengthOf: "参考图 {number} 的强度", from: "从", to: "到", columns: "列数", seeds: "种子数",
  runSweep: "生成 {count} 张", cell: "{value}，种子 {seed}", cell_queued: "…", cell_failed: "失败", cell_cancelled: "已取消", used: "已将 {value} 写入设置。",
  maskOf: "参考图 {number} 的作用区域", painting: "绘制", brush: "画笔", eraser: "橡皮", brushSize: "大小", invert: "反选", clearMask: "清空蒙版", loadMask: "载入蒙版图片", fill: "填充……",
  half_left: "左半", half_right: "右半", half_top: "上半", half_bottom: "下半", half_whole: "全部", canvas: "绘制区域", paintNote: "涂抹它应当起作用的地方，笔画可以超出画框。[ 和 ] 调整画笔，E 切换橡皮，Ctrl Z 撤销一笔。",

  noPictures: "你的图片会出现在这里。", older: "更早的图片", thumb: "{prompt}，种子 {seed}", deleted: "已删除 {count} 张图片。",
  searchStyles: "搜索风格", resembling: "查找与图片相似的风格", byResemblance: "按相似度", showAll: "显示全部", noStyles: "还没有风格。可在参考图的“更多”中保存。", noneFound: "没有找到。", noAdapter: "此处没有适用的适配器",
  use: "使用", useStyle: "使用风格 {name}", deleteStyle: "删除风格 {name}", styleDeleted: "风格 {name} 已删除。",
  mix: "混合", mixNote: "请选择两个或更多风格。", mixShares: "设置比例。", mixWith: "混合 {name}", mixNow: "混合",

  missingTitle: "缺少图片", missingText: "这张图片用到了下列参考图，但服务器上没有。请提供相同的文件，或使用图片中保存的特征。",
  chooseFile: "选择", wrongFile: "这是另一个文件：哈希值不同。", useTokens: "使用图片中的特征",
  keyTitle: "密钥", keyText: "此服务器需要密钥。", keyWrong: "服务器不认识这个密钥。", key: "密钥", enter: "继续", noKey: "服务器需要密钥。",
  offline: "服务器没有响应。", tryIn: "请在 {seconds} 秒后重试。", notAPicture: "只能使用 PNG、JPEG 和 WebP 图片。",
  dropHere: "松开即可", dropNote: "在此生成的图片会还原设置，其他图片会成为参考图。",
  key_run: "生成", key_cancel: "取消正在生成的图片", key_prompt: "转到提示词", key_gallery: "下一张与上一张", key_delete: "删除图片", key_move: "移动参考图（在手柄上）", key_undo: "撤销一笔", key_brush: "缩小与放大画笔", key_eraser: "橡皮", key_help: "打开帮助", key_close: "关闭、离开",
  helpDrop: "图片可拖放或粘贴到任意位置。由 imageprompt 生成的 PNG 会还原全部设置。",
};

export const WORDS = { en, zh };
export const LANGUAGES = { en: "English", zh: "中文" };
let words = en;

/** Chooses the language: the given one, or the browser's. Returns its name. */
export function useLanguage(wanted) {
  const name = WORDS[wanted] ? wanted : navigator.language.startsWith("zh") ? "zh" : "en";
  words = WORDS[name];
  return name;
}

/** The words of a key with its values. */
export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)(?:\|([^|}]*)\|([^}]*))?\}/g, (_, name, one, many) =>
    one === undefined ? values[name] : `${values[name]} ${values[name] === 1 ? one : many}`);
}

/** The words of a key that may not be there. */
t.maybe = (key) => words[key];
