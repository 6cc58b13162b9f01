"""What Animl is asked, in GraphQL."""

COUNT = "query Count($input: QueryImagesCountInput!) { imagesCount(input: $input) { count } }"

EXPORT = "query Export($input: ExportInput!) { exportAnnotations(input: $input) { _id } }"

TASK = "query Task($input: QueryTaskInput!) { task(input: $input) { _id status output } }"

PLACES = """query Places($input: QueryProjectsInput) {
  projects(input: $input) {
    _id
    cameraConfigs { _id deployments { _id name startDate location { geometry { coordinates } } } }
  }
}"""

ML_MODELS = """query Models($input: QueryMLModelsInput) {
  mlModels(input: $input) { _id version description defaultConfThreshold expectsCrops categories { _id name color taxonomy } }
}"""

_RULE = "_id name event { type label } action { type alertRecipients mlModel country admin1Region confThreshold categoryConfig }"

RULES = f"query Rules($input: QueryProjectsInput) {{ projects(input: $input) {{ _id automationRules {{ {_RULE} }} }} }}"

REPLACE_RULES = f"""mutation Replace($input: UpdateAutomationRulesInput!) {{
  updateAutomationRules(input: $input) {{ automationRules {{ {_RULE} }} }}
}}"""
